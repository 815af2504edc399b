"""What doctor says of the host's network: from facts to checks, as local/findings.py does for the rest.

Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv4Network

from banger.config.settings import Settings
from banger.local.findings import Check, Distribution, Status
from banger.network.neighbours import Obstacle, Program
from banger.system.routes import LinkFact, RoutingFacts

VPN_KINDS = frozenset({"wireguard", "tun", "ppp", "xfrm", "vti", "ipip", "gre"})
USUAL_MTU = 1500
_CANDIDATES = ("172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/8")


def bridge(settings: Settings, routing: RoutingFacts, instance: str) -> Check:
    """instance: its mark, "" before the first start."""
    name, own = settings.bridge_name, f"banger:{instance}:" if instance else "\0"
    there = routing.link(name)
    if there is not None and not there.alias.startswith(own):
        what = f"a {there.kind}" if there.kind else "a network card"
        return Check(
            "bridge",
            Status.FAIL,
            f"{name} is {what} that this banger did not make",
            "set bridge_name in config.toml to a name that is free",
        )
    wanted = IPv4Interface(f"{settings.bridge_ip}/{settings.cidr}").network
    ours = {link.name for link in routing.links if link.alias.startswith(own)}
    taken = _overlaps(wanted, routing, ours=ours)
    if taken:
        return Check(
            "bridge",
            Status.WARN if there else Status.FAIL,
            f"the guests' network {wanted} is in use already: {'; '.join(taken)}",
            f'set bridge_ip in config.toml, for example to "{_free(settings.cidr, routing)}"',
        )
    state = "is there" if there else "is made at the first start"
    return Check("bridge", Status.PASS, f"{name} {state}, {settings.bridge_ip}/{settings.cidr}")


def _overlaps(wanted: IPv4Network, routing: RoutingFacts, *, ours: set[str]) -> list[str]:
    """Links and routes of others that have some of the network; default routes aside."""
    found = [
        f"{_described(link)} has {address}"
        for link in routing.links
        for address in link.addresses
        if link.name not in ours and wanted.overlaps(IPv4Interface(address).network)
    ]
    said = {(link.name, IPv4Interface(each).network) for link in routing.links for each in link.addresses}
    for route in routing.routes:
        network = ipaddress.ip_network(route.network)
        if not isinstance(network, IPv4Network) or network.prefixlen == 0 or (route.link, network) in said:
            continue
        if route.link not in ours and wanted.overlaps(network):
            link = routing.link(route.link)
            by = _described(link) if link else route.link or "several links"
            found.append(f"{network} is reached by {by}")
    return found


def _described(link: LinkFact) -> str:
    return f"{link.name} (a VPN)" if link.kind in VPN_KINDS else link.name


def _free(prefix: int, routing: RoutingFacts) -> str:
    """The first address of a network that nothing here has."""
    for candidate in map(IPv4Network, _CANDIDATES):
        if prefix < candidate.prefixlen:
            continue
        for number, network in enumerate(candidate.subnets(new_prefix=prefix)):
            if number >= 4096:
                break
            if not _overlaps(network, routing, ours=set()):
                return str(network.network_address + 1)
    return "a private address that is free here"


def uplink(routing: RoutingFacts) -> Check:
    """The way out of guests with NAT."""
    link = routing.link(routing.uplink)
    if link is None:
        return Check(
            "way out",
            Status.WARN,
            "this host has no default route: guests with NAT get no further than it does",
            "bring up a network connection; running guests take it at once",
        )
    defaults = sorted({r.link for r in routing.routes if r.network == "0.0.0.0/0" and r.link != link.name})
    beside = f" (there are default routes by {', '.join(defaults)} too)" if defaults else ""
    rules = [f"rule {preference} leads to table {table}" for preference, table in routing.rules]
    policy = f"; {', '.join(rules)}: some packets go another way" if rules else ""
    return Check(
        "way out", Status.PASS, f"guests with NAT leave by {_described(link)}{beside}{policy}; it may change"
    )


def mtu(routing: RoutingFacts) -> Check:
    link = routing.link(routing.uplink)
    if link is None:
        return Check("mtu", Status.PASS, "no way out")
    fitted = (
        "" if link.mtu >= USUAL_MTU else f", guests send {USUAL_MTU}: their TCP connections are made to fit"
    )
    return Check("mtu", Status.PASS, f"{link.name} takes {link.mtu} bytes{fitted}")


def firewalls(found: Sequence[Obstacle], there: Sequence[Program], problem: str) -> list[Check]:
    """there: programs that have rules, whether they stop anything or not."""
    if problem:
        hint = "mend it, then run doctor again: sudo nft list ruleset"
        return [Check("firewall", Status.WARN, f"others' rules cannot be seen: {problem}", hint)]
    if found:
        return [Check("firewall", Status.WARN, each.sentence(), each.remedy) for each in found]
    if there:
        return [Check("firewall", Status.PASS, f"{', '.join(there)}: guests are let through")]
    return [Check("firewall", Status.PASS, "no other firewall stops guests")]


def bridge_calls(*, on: bool, isolated: bool) -> Check:
    """bridge-nf-call-iptables, which Docker and Kubernetes set."""
    if not on:
        return Check("bridge filtering", Status.PASS, "off: packets between guests pass banger's rules alone")
    if isolated:
        return Check("bridge filtering", Status.PASS, "on (Docker sets it); guests are isolated in any case")
    return Check(
        "bridge filtering",
        Status.PASS,
        "on (Docker sets it): packets between guests pass the forward rules of other firewalls too",
    )


def resolver(
    listen: str, *, serves: bool, listed: bool, stub: bool, holder: str, distribution: Distribution
) -> Check:
    """How NAME.vm resolves on the host. serves: systemd-resolved. listed: resolv.conf names banger itself.
    stub: the C library asks systemd-resolved. holder: who answers at resolv.conf's server on this host."""
    if listed:
        return Check("resolver", Status.PASS, f"resolv.conf asks banger, at {listen}")
    if serves and stub:
        return Check("resolver", Status.PASS, "systemd-resolved asks banger for .vm while guests run")
    message = f"programs on this host do not resolve NAME.vm: only who asks {listen} itself does"
    if serves:
        link = "sudo ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"
        said = f"systemd-resolved runs, and resolv.conf passes it by: {message}"
        return Check("resolver", Status.WARN, said, link)
    address, _, port = listen.rpartition(":")
    if "dnsmasq" in holder:
        line = f"echo server=/vm/{address}#{port} | sudo tee /etc/dnsmasq.d/banger.conf"
        hint = f"{line} && sudo systemctl restart dnsmasq (NetworkManager's: /etc/NetworkManager/dnsmasq.d)"
        return Check("resolver", Status.WARN, f"dnsmasq answers for this host, and {message}", hint)
    if "unbound" in holder:
        hint = (
            "a stub-zone for vm in its configuration, as docs/names.md has it; sudo systemctl restart unbound"
        )
        return Check("resolver", Status.WARN, f"unbound answers for this host, and {message}", hint)
    install = {"debian": "sudo apt install systemd-resolved", "fedora": "sudo dnf install systemd-resolved"}
    if distribution.family in install:
        start = f"{install[distribution.family]} && sudo systemctl enable --now systemd-resolved"
    elif distribution.family == "arch":
        start = "sudo systemctl enable --now systemd-resolved"
    else:
        start = "run systemd-resolved or dnsmasq"
    hint = f"{start}; without it: docs/names.md (dnsmasq, NetworkManager, unbound, a plain resolv.conf)"
    return Check("resolver", Status.WARN, f"no systemd-resolved runs: {message}", hint)
