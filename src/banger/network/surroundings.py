"""What of this host stops guests now: the facts, asked for, and network/neighbours.py's judgement of them.

For doctor, a VM's start and the end of the last one. Reads only; takes some 20 ms, and more where others have
many rules.
"""

from __future__ import annotations

import asyncio
import ipaddress

from banger.config.settings import Settings
from banger.network.bridges import bridges_of
from banger.network.neighbours import Obstacle, Way, forwarders, obstacles
from banger.system.firewalls import FirewallFacts, firewall_facts
from banger.system.netpath import route_to
from banger.system.routes import PROBE, routing_facts


def way_of(settings: Settings, *, link: str, guest_ip: str = "", nat: bool = True) -> Way:
    """guest_ip: "" for any guest of the first bridge."""
    network = ipaddress.IPv4Interface(f"{settings.bridge_ip}/{settings.cidr}").network
    guest = guest_ip or str(next(each for each in network.hosts() if str(each) != settings.bridge_ip))
    return Way(
        bridge=bridges_of(settings).of(guest_ip),
        bridge_ip=settings.bridge_ip,
        guest_ip=guest,
        uplink=link,
        nat=nat,
        isolated=settings.network_isolation,
    )


async def look(settings: Settings, *, guest_ip: str = "") -> tuple[FirewallFacts, tuple[Obstacle, ...]]:
    """For guests with NAT."""
    facts = await firewall_facts()
    way = way_of(settings, link=route_to(PROBE).link, guest_ip=guest_ip)
    return facts, await asyncio.to_thread(obstacles, facts, way)  # a second, of twenty thousand rules


async def who_forwards() -> tuple[str, ...]:
    """Who besides banger needs the host to forward. Raises OSError where that cannot be seen."""
    facts, routing = await firewall_facts(), await routing_facts()
    if facts.problem:
        raise OSError(facts.problem)
    return await asyncio.to_thread(forwarders, facts, routing)


class Lookout:
    """What `vm run` and `vm start` say of it, in whole sentences."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __call__(self, guest_ip: str) -> tuple[str, ...]:
        _, found = await look(self._settings, guest_ip=guest_ip)
        return tuple(each.warning() for each in found)
