"""What `net why` asks of its facts. Pure; used by the modules beside it and by vm/netwhy.py."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import msgspec

from banger.model.netwhy import Cause, Facts, GuestRoute, HostLink, NetRule, Protocol


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """at: the stage that it stops at. rule: which decided, if one did."""

    cause: Cause
    at: str
    sentence: str
    remedy: str = ""
    rule: NetRule | None = None


def best_route(routes: Sequence[GuestRoute], target: str) -> GuestRoute | None:
    """As the guest's kernel chooses: the longest prefix, then the lowest metric."""
    address = ipaddress.IPv4Address(target)
    fitting = [route for route in routes if address in ipaddress.IPv4Network(route.network)]
    return min(
        fitting,
        key=lambda route: (-ipaddress.IPv4Network(route.network).prefixlen, route.metric),
        default=None,
    )


def link_of(facts: Facts, name: str) -> HostLink | None:
    return next((link for link in facts.links if name and link.name == name), None)


def may_be_uplink(link: HostLink, facts: Facts) -> bool:
    return not link.virtual and not link.master and bool(link.addresses) and link.name != facts.bridge


def own_addresses(facts: Facts) -> set[str]:
    return {address.partition("/")[0] for link in facts.links for address in link.addresses}


def is_inside(facts: Facts) -> bool:
    """The bridge's network: the host's address there, or a guest's."""
    if not facts.target:
        return False
    return ipaddress.IPv4Address(facts.target) in ipaddress.IPv4Network(facts.network)


def is_of_guest(facts: Facts) -> bool:
    return facts.target == facts.guest_ip or ipaddress.IPv4Address(facts.target).is_loopback


def attempt_by_hand(facts: Facts) -> str:
    if facts.protocol is Protocol.TCP:
        return f"curl -v telnet://{facts.target}:{facts.port}"
    return f"ping {facts.target}"
