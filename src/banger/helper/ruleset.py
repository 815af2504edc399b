"""The firewall as text for `nft -f`: this instance's two tables, whole, replaced in one transaction. Pure.

Used by whoever executes `apply_firewall`: what root loads into the kernel is made here, from arguments that
have been checked, and never comes as text from elsewhere. Sets instead of rules per VM: a guest is one
element in each. The `bridge` table ties address and MAC to the tap and keeps guests apart; the `inet` table
says what a guest's packets may reach. Default deny: a tap that is in no set gets nothing. Each rule carries
in words what it is for, so that `nft list` and `net why` can say which one it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from banger.helper import marks
from banger.helper.interface import FirewallRules

FAMILIES = ("inet", "bridge")
DNS_PORT = 53
FORWARDING_MARK = "forwarding_was_off"
"""An empty chain: this instance, or one before it, switched net.ipv4.ip_forward on."""
_FIRST = "filter - 10"
"""Before the filters of most others: what is dropped here is dropped, whatever they accept."""
_REJECT = "reject with icmpx type admin-prohibited"
"""The guest's program hears at once that it may not, instead of waiting."""


def tables(instance: str) -> tuple[tuple[str, str], ...]:
    """(family, name) of all that `ruleset` makes."""
    return tuple((family, marks.nft_table(instance)) for family in FAMILIES)


def ruleset(instance: str, rules: FirewallRules) -> str:
    """A transaction that leaves the instance's tables as the rules say, whatever was there before."""
    fresh = "".join(removal(table) for table in tables(instance))
    name = marks.nft_table(instance)
    return fresh + _inet(name, rules) + _bridge(name, rules, marks.link_group(instance))


def removal(table: tuple[str, str]) -> str:
    """A transaction that removes a table, whether or not it is there."""
    family, name = table
    return f"table {family} {name}\ndelete table {family} {name}\n"


def declared(text: str) -> dict[tuple[str, str], str]:
    """The tables that a ruleset ends with, and what it says of each; those it only deletes are left out."""
    blocks = re.findall(r"^table (\w+) (\w+) \{\n(.*?)^\}\n", text, re.MULTILINE | re.DOTALL)
    return {(family, name): body for family, name, body in blocks}


def _inet(name: str, rules: FirewallRules) -> str:
    nat = sorted(guest.address for guest in rules.guests if guest.nat)
    names = ", ".join(f'"{link}"' for link in (rules.bridge, *rules.further))
    bridges = f"{{ {names} }}" if rules.further else names
    neighbours = (
        f'oifname {bridges} {_REJECT} comment "guests are isolated from each other"'
        if rules.isolated
        else f'oifname {bridges} accept comment "guests may reach each other (network_isolation)"'
    )
    mark = f"\tchain {FORWARDING_MARK} {{\n\t}}\n" if rules.forwarding_was_off else ""
    return f"""table inet {name} {{
\tset nat {{
\t\ttype ipv4_addr
{_elements(nat)}\t}}
\tset host_access {{
\t\ttype inet_service
{_elements(str(port) for port in sorted(set(rules.host_access)))}\t}}
{mark}\tchain input {{
\t\ttype filter hook input priority {_FIRST}; policy accept;
\t\tiifname {bridges} jump to_host comment "what guests send to the host"
\t}}
\tchain to_host {{
\t\tmeta nfproto ipv6 drop comment "guests have no IPv6"
\t\tct state established,related ct direction reply accept comment "answers to what the host opened"
\t\tct state invalid drop comment "belongs to no connection"
\t\tip daddr != {rules.address} {_REJECT} comment "of the host's addresses only the bridge's is for guests"
\t\ticmp type echo-request accept comment "ping"
\t\tmeta l4proto {{ tcp, udp }} th dport {DNS_PORT} accept comment "DNS"
\t\tmeta l4proto {{ tcp, udp }} th dport @host_access accept comment "ports in host_access"
\t\t{_REJECT} comment "the host's services are not for guests (host_access)"
\t}}
\tchain forward {{
\t\ttype filter hook forward priority {_FIRST}; policy accept;
\t\tiifname {bridges} jump from_guest comment "what guests send through the host"
\t\toifname {bridges} jump to_guest comment "what comes for guests through the host"
\t}}
\tchain from_guest {{
\t\tmeta nfproto ipv6 drop comment "guests have no IPv6"
\t\t{neighbours}
\t\tip saddr != @nat {_REJECT} comment "the guest has no NAT"
\t\tct state invalid drop comment "belongs to no connection, and would leave with the guest's own address"
\t\tct status dnat {_REJECT} comment "a port of the host, led elsewhere by another program"
\t\ttcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu comment "fits the way out, a VPN's say"
\t\taccept comment "the guest has NAT"
\t}}
\tchain to_guest {{
\t\tip daddr @nat ct state established,related ct direction reply accept comment "answers to what it opened"
\t\tdrop comment "nobody beyond the host opens a connection to a guest"
\t}}
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr @nat oifname != {bridges} masquerade comment "leaves with the host's address"
\t}}
}}
"""


def _bridge(name: str, rules: FirewallRules, group: int) -> str:
    guests = sorted(rules.guests, key=lambda guest: guest.tap)
    whole = (f'"{guest.tap}" . {guest.mac} . {guest.address}' for guest in guests)
    ports = (f'"{guest.tap}" . {guest.mac}' for guest in guests)
    taps = (f'"{guest.tap}"' for guest in guests)
    between = 'drop comment "guests are isolated from each other"' if rules.isolated else "jump to_port"
    # Frames to 01:80:c2:00:00:0x come by `input` alone, and the bridge would learn their sender from them.
    # A tap of an older version is in no group, but in the set.
    return f"""table bridge {name} {{
\tset guests {{
\t\ttype ifname . ether_addr . ipv4_addr
{_elements(whole)}\t}}
\tset ports {{
\t\ttype ifname . ether_addr
{_elements(ports)}\t}}
\tset taps {{
\t\ttype ifname
{_elements(taps)}\t}}
\tchain prerouting {{
\t\ttype filter hook prerouting priority dstnat; policy accept;
\t\tiifgroup {group} jump from_tap comment "what comes from any tap of this banger"
\t\tiifname @taps jump from_tap comment "what comes from a guest's tap"
\t}}
\tchain input {{
\t\ttype filter hook input priority filter; policy accept;
\t\tiifgroup {group} jump from_tap comment "what comes from any tap of this banger"
\t\tiifname @taps jump from_tap comment "what comes from a guest's tap"
\t}}
\tchain from_tap {{
\t\tether type != {{ ip, arp }} drop comment "guests speak IPv4 and ARP only"
\t\tether type ip iifname . ether saddr . ip saddr @guests accept comment "its own MAC and address"
\t\tether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 \
iifname . ether saddr . arp saddr ip @guests iifname . arp saddr ether . arp saddr ip @guests \
accept comment "ARP that says its own MAC and address"
\t\tdrop comment "not the address or the MAC of this tap's guest"
\t}}
\tchain forward {{
\t\ttype filter hook forward priority filter; policy accept;
\t\tiifgroup {group} {between}
\t\tiifname @taps {between}
\t\toifgroup {group} {between}
\t\toifname @taps {between}
\t}}
\tchain output {{
\t\ttype filter hook output priority filter; policy accept;
\t\toifgroup {group} jump to_port comment "what the host sends to a tap of this banger"
\t\toifname @taps jump to_port comment "what the host sends to a guest's tap"
\t}}
\tchain to_port {{
\t\toifname . ether daddr @ports accept comment "the MAC of this tap's guest"
\t\tether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 accept comment "to everybody"
\t\tdrop comment "for another guest's MAC"
\t}}
}}
"""


def _elements(items: Iterable[str]) -> str:
    joined = ",\n\t\t\t".join(items)
    return f"\t\telements = {{ {joined} }}\n" if joined else ""
