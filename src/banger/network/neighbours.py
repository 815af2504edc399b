"""Other firewall programs of this host: which are there, what they stop of guests, and what to do about it.

Pure. doctor and the warning at a VM's start (over system/firewalls.py's facts) and `net why` (over the
kernel's trace) name the same program and the same command because all ask here. banger changes no table but
its own, and nothing in its own can undo what another drops: so these words are all there is to do.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address

from banger.helper.marks import parse_link_alias
from banger.network.netfilter import Packet, Statement, Stop, Table, read_tables, stops
from banger.system.firewalls import FirewallFacts
from banger.system.routes import PROBE, RoutingFacts

ANY_OUTSIDE = IPv4Address(PROBE)
"""An address that no rule has a reason to know."""
_DNS, _HTTPS, _CLIENT = 53, 443, 40000
_IPTABLES = ("filter", "nat", "mangle", "raw")
_FILTERING = ("filter", "mangle")
"""Of iptables' tables those with both FORWARD and INPUT."""
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class Program(StrEnum):
    """The values are what people call them."""

    DOCKER = "Docker"
    DOCKER_NFT = "Docker (nftables)"
    FIREWALLD = "firewalld"
    UFW = "ufw"
    IPTABLES = "iptables"
    OTHER = "another firewall"


class What(StrEnum):
    """What is stopped, in the words of the sentence."""

    OUT = "what guests with NAT send out"
    BACK = "the answers to guests with NAT"
    DNS = "guests' questions to the name server on the bridge"
    HOST = "what guests send to the host"
    BETWEEN = "what guests send each other"


@dataclass(frozen=True, slots=True)
class Way:
    """The packets to ask about. uplink: the link of the default route, "" where there is none."""

    bridge: str
    bridge_ip: str
    guest_ip: str
    uplink: str
    nat: bool = True
    isolated: bool = True


@dataclass(frozen=True, slots=True)
class Drop:
    """What ends where. legacy: of old-style iptables."""

    what: What
    family: str
    table: str
    chain: str
    legacy: bool = False


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What one program stops. chains: "ip filter FORWARD"."""

    program: Program
    what: tuple[What, ...]
    chains: tuple[str, ...]
    remedy: str

    def sentence(self) -> str:
        return f"{self.program} drops {' and '.join(self.what)} ({', '.join(self.chains)})"

    def warning(self) -> str:
        """As a start says it: one line with the way out."""
        return f"{self.sentence()}; {self.remedy}"


def programs(facts: FirewallFacts) -> tuple[Program, ...]:
    """Which have rules here, whether or not they stop anything; nft tables of nobody known are none."""
    found = {
        owner(table) for table in read_tables(facts) if any(chain.rules for chain in table.chains.values())
    }
    return tuple(program for program in Program if program in found and program is not Program.OTHER)


def owner(table: Table) -> Program:
    return program_of(table.family, table.name, chains=table.chains)


def program_of(family: str, table: str, *, chains: Iterable[str]) -> Program:
    """By the names that programs give to their tables and chains. chains: the table's, as far as known."""
    if table.startswith("firewalld"):
        return Program.FIREWALLD
    if table.startswith("docker"):
        return Program.DOCKER_NFT
    known = tuple(chains)
    if any(name.startswith("ufw-") for name in known):
        return Program.UFW
    if any(name.startswith("DOCKER") for name in known):
        return Program.DOCKER
    if family in ("ip", "ip6") and table in _IPTABLES:
        return Program.IPTABLES
    return Program.OTHER


def forwarders(facts: FirewallFacts, routing: RoutingFacts) -> tuple[str, ...]:
    """Who besides banger needs this host to forward: tables that give others' packets an address of the host,
    and bridges with an address, other than that by which the host itself reaches the world."""
    tables = [
        f"{owner(table)} (table {table.family} {table.name})"
        for table in read_tables(facts)
        if any(_masks(rule) for chain in table.chains.values() for rule in chain.rules)
    ]
    bridges = [
        f"bridge {link.name}"
        for link in routing.links
        if link.kind == "bridge"
        and link.addresses
        and link.name != routing.uplink
        and parse_link_alias(link.alias) is None
    ]
    return (*tables, *bridges)


def _masks(rule: Sequence[Statement]) -> bool:
    """As nft says it, and as iptables does in nft."""
    targets = [extension for each in rule if isinstance(extension := each.get("xt"), dict)]
    return any("masquerade" in each or "snat" in each for each in rule) or any(
        target.get("name") in ("MASQUERADE", "SNAT") for target in targets
    )


def obstacles(facts: FirewallFacts, way: Way) -> tuple[Obstacle, ...]:
    """What stops guests, by program and table, in a fixed order."""
    tables = read_tables(facts)
    by_table: dict[int, list[tuple[What, Stop]]] = {}
    for what, packet in _packets(way, bridge_calls=facts.bridge_calls):
        for stop in stops(tables, packet):
            by_table.setdefault(id(stop.table), []).append((what, stop))
    found = [_obstacle(said, way) for said in by_table.values()]
    return tuple(sorted(found, key=lambda each: (list(Program).index(each.program), each.chains)))


def _packets(way: Way, *, bridge_calls: bool) -> list[tuple[What, Packet]]:
    guest, host = IPv4Address(way.guest_ip), IPv4Address(way.bridge_ip)
    ask = Packet("input", way.bridge, "", guest, host, "udp", _CLIENT, _DNS, way.bridge)
    found = [(What.DNS, ask)]
    if way.nat and way.uplink:
        out = Packet(
            "forward", way.bridge, way.uplink, guest, ANY_OUTSIDE, "tcp", _CLIENT, _HTTPS, way.bridge
        )
        back = Packet(
            "forward",
            way.uplink,
            way.bridge,
            ANY_OUTSIDE,
            guest,
            "tcp",
            _HTTPS,
            _CLIENT,
            way.bridge,
            answer=True,
        )
        found += [(What.OUT, out), (What.BACK, back)]
    if not way.isolated and bridge_calls:
        other = Packet("forward", way.bridge, way.bridge, guest, guest, "tcp", _CLIENT, _HTTPS, way.bridge)
        found.append((What.BETWEEN, other))
    return found


def _obstacle(said: Sequence[tuple[What, Stop]], way: Way) -> Obstacle:
    table = said[0][1].table
    program = owner(table)
    what = tuple(dict.fromkeys(each for each, _ in said))
    chains = tuple(dict.fromkeys(f"{table.family} {table.name} {stop.chain}" for _, stop in said))
    shown = tuple(f"{chain} of iptables-legacy" for chain in chains) if table.legacy else chains
    drops = tuple(
        Drop(each, table.family, table.name, stop.chain, legacy=table.legacy) for each, stop in said
    )
    way_out = remedy(program, drops, bridge=way.bridge, bridge_ip=way.bridge_ip, chains=table.chains)
    return Obstacle(program, what, shown, way_out)


def remedy(
    program: Program, drops: Sequence[Drop], *, bridge: str, bridge_ip: str, chains: Iterable[str]
) -> str:
    """For this very situation: root's commands, one line. drops: of one table. chains: as for program_of."""
    link, stopped = shlex.quote(bridge), {drop.what for drop in drops}
    if program is Program.FIREWALLD:
        add = f"firewall-cmd --permanent --zone=trusted --add-interface={link}"
        return f"run: sudo {add} && sudo firewall-cmd --reload"
    if program is Program.DOCKER_NFT:
        return 'set "ip-forward-no-drop": true in /etc/docker/daemon.json; run: sudo systemctl restart docker'
    if program is Program.UFW:
        commands = [f"ufw route allow in on {link}"] if stopped & {What.OUT, What.BETWEEN} else []
        commands += [f"ufw route allow out on {link}"] if What.BACK in stopped else []
        commands += [f"ufw allow in on {link} to {bridge_ip} port 53"] if What.DNS in stopped else []
        commands += [f"ufw allow in on {link}"] if What.HOST in stopped else []
        return _run(commands)
    if program in (Program.DOCKER, Program.IPTABLES):
        known = tuple(chains)
        found = [_iptables(drop, link, bridge_ip=bridge_ip, chains=known) for drop in drops]
    else:
        found = [_nft(drop, link, bridge_ip=bridge_ip) for drop in drops]
    if not all(found):
        return f"let the program that made it accept what comes from {link}, and the answers"
    return _run([command for commands in found for command in commands])


def _iptables(drop: Drop, link: str, *, bridge_ip: str, chains: Sequence[str]) -> list[str]:
    """None where iptables has no such command: some chains know no outgoing link, others no incoming."""
    forwarded = drop.what in (What.OUT, What.BETWEEN, What.BACK)
    chain = "FORWARD" if forwarded else "INPUT"
    if forwarded and drop.table == "filter" and "DOCKER-USER" in chains:
        chain = "DOCKER-USER"
    if drop.table not in _FILTERING or drop.chain in ("PREROUTING", "POSTROUTING", "OUTPUT"):
        leaving = drop.chain in ("POSTROUTING", "OUTPUT")
        if drop.chain not in ("PREROUTING", "POSTROUTING", "OUTPUT") or leaving != (drop.what is What.BACK):
            return []
        chain = drop.chain
    tool = "iptables-legacy" if drop.legacy else "iptables"
    if drop.table != "filter":
        tool += f" -t {drop.table}"
    matches = {
        What.BACK: [f"-o {link} -m conntrack --ctstate RELATED,ESTABLISHED"],
        What.DNS: [f"-i {link} -d {bridge_ip} -p {protocol} --dport 53" for protocol in ("udp", "tcp")],
    }
    return [f"{tool} -I {chain} {match} -j ACCEPT" for match in matches.get(drop.what, [f"-i {link}"])]


def _nft(drop: Drop, link: str, *, bridge_ip: str) -> list[str]:
    """In front of the rule (or of the policy) that drops. None where nft would not take the words."""
    if drop.family == "bridge" or not all(_PLAIN.fullmatch(word) for word in (drop.table, drop.chain)):
        return []
    words = {
        What.BACK: f"oifname {link} ct state established,related accept",
        What.DNS: f"iifname {link} ip daddr {bridge_ip} th dport 53 accept",
    }
    where = f"{drop.family} {drop.table} {drop.chain}"
    return [f"nft insert rule {where} {words.get(drop.what, f'iifname {link} accept')}"]


def _run(commands: Sequence[str]) -> str:
    return "run: " + " && ".join(f"sudo {command}" for command in dict.fromkeys(commands))
