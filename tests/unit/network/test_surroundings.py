"""Which packets are asked about, of which guest."""

from __future__ import annotations

import pytest

from banger.config.settings import Settings
from banger.network import surroundings
from banger.network.surroundings import way_of, who_forwards
from banger.system.firewalls import FirewallFacts
from banger.system.routes import RoutingFacts


def test_any_guest_is_not_the_bridge_itself() -> None:
    way = way_of(Settings(), link="eth0")
    assert (way.bridge, way.bridge_ip, way.guest_ip, way.uplink) == (
        "br-fc",
        "172.16.0.1",
        "172.16.0.2",
        "eth0",
    )
    assert way_of(Settings(bridge_ip="172.16.0.2"), link="").guest_ip == "172.16.0.1"


def test_a_guest_of_a_further_bridge_is_asked_about_there() -> None:
    way = way_of(Settings(cidr=16), link="eth0", guest_ip="172.16.4.0")
    assert way.bridge == "br-fc-1"


@pytest.mark.anyio
async def test_rules_that_cannot_be_seen_are_not_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unseen() -> FirewallFacts:
        return FirewallFacts(problem="nft did not end within 10 s")

    async def alone() -> RoutingFacts:
        return RoutingFacts()

    monkeypatch.setattr(surroundings, "firewall_facts", unseen)
    monkeypatch.setattr(surroundings, "routing_facts", alone)
    with pytest.raises(OSError, match="nft did not end"):
        await who_forwards()
