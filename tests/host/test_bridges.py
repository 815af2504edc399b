"""Guests of one network on two bridges: what they reach is what guests on one do, and nothing is left."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence

import msgspec
import pytest

from banger.config.settings import Settings
from banger.errors import BangerError
from banger.helper import marks
from banger.helper.inprocess import InProcessHelper
from banger.model.records import VMRecord
from banger.network.bridges import bridges_of
from banger.network.firewall import Firewall
from banger.network.host import HostNetwork
from banger.store.settings import SettingTable
from banger.system.links import Links
from tests.capabilities import require
from tests.host import streets
from tests.host.streets import BRIDGE, BRIDGE_IP, SERVER_IP, answers_ping, guest, ip, listener, reaches
from tests.host.test_firewall import before as before
from tests.host.test_firewall import record_of

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("netns", "tun", "nft")]

SETTINGS = Settings(bridge_name=BRIDGE, bridge_ip=BRIDGE_IP, cidr=24, tap_pool_size=0, host_access=(9001,))
FIRST, SECOND, THIRD = 2, 6, 10
"""Of 4 addresses a bridge, each of these is on another."""
WEB = 8080


def network_of(
    helper: InProcessHelper, before: SettingTable, *, records: Sequence[VMRecord], isolated: bool = True
) -> HostNetwork:
    settings = msgspec.structs.replace(SETTINGS, network_isolation=isolated)
    bridges = bridges_of(settings, guests=4)
    firewall = Firewall(helper, settings, records=lambda: records, before=before, bridges=bridges)
    return HostNetwork(helper, settings, firewall=firewall, bridges=bridges)


@pytest.mark.parametrize("isolated", [True, False])
async def test_guests_on_several_bridges_reach_what_guests_on_one_do(
    helper: InProcessHelper, instance: str, before: SettingTable, isolated: bool
) -> None:
    """Two have NAT only where the guests are isolated: else it is the bridges that make the host a router."""
    records = [record_of(FIRST, nat=False), *(record_of(n, nat=isolated) for n in (SECOND, THIRD))]
    network = network_of(helper, before, records=records, isolated=isolated)
    for record in records:
        await network.prepare(record.runtime.guest_ip)
    with (
        streets.internet() as internet,
        guest(FIRST, instance) as first,
        guest(SECOND, instance, bridge=f"{BRIDGE}-1") as second,
        guest(THIRD, instance, bridge=f"{BRIDGE}-2") as third,
        listener(internet, SERVER_IP, WEB),
        listener(None, "0.0.0.0", 9000),
        listener(None, "0.0.0.0", 9001),
        listener(first, first.address, WEB),
        listener(third, third.address, WEB),
    ):
        await network.firewall.refresh()
        ip("route", "add", "default", "via", SERVER_IP)
        for place in (first, second, third):
            assert answers_ping(place, BRIDGE_IP)
            assert reaches(place, BRIDGE_IP, 9001)
            assert not reaches(place, BRIDGE_IP, 9000)
            assert not reaches(place, streets.UPLINK_IP, 9001)
            with place.open() as made:  # what the host opens to a guest comes there, and back
                made.bind((place.address, 7000))
                made.listen()
                with streets.quick(socket.AF_INET, socket.SOCK_STREAM) as host:
                    host.connect((place.address, 7000))
                    assert host.getsockname()[0] == BRIDGE_IP
        assert not reaches(first, SERVER_IP, WEB)
        assert reaches(second, SERVER_IP, WEB) == isolated
        assert reaches(third, SERVER_IP, WEB) == isolated
        if isolated:  # not by a way over the host either, which is a router for those with NAT
            for one, other in ((second, first), (first, third), (second, third)):
                one.ip("route", "add", f"{other.address}/32", "via", BRIDGE_IP)
                assert not reaches(one, other.address, WEB)
        else:
            assert answers_ping(first, second.address)
            assert reaches(second, first.address, WEB)
            assert reaches(second, third.address, WEB)
            assert await helper.forwarding()
        ip("route", "delete", "default")
    await network.shutdown()
    assert json.loads(ip("-json", "link", "show", "type", "bridge")) == []
    assert not await helper.forwarding()


async def test_a_guest_cannot_take_an_address_of_another_bridge(
    helper: InProcessHelper, instance: str, before: SettingTable
) -> None:
    records = [record_of(n, nat=True) for n in (FIRST, SECOND)]
    network = network_of(helper, before, records=records, isolated=False)
    for record in records:
        await network.prepare(record.runtime.guest_ip)
    with guest(FIRST, instance) as first, guest(SECOND, instance, bridge=f"{BRIDGE}-1") as second:
        await network.firewall.refresh()
        assert answers_ping(first, second.address)
        first.ip("address", "replace", f"{second.address}/24", "dev", "eth0")
        first.ip("address", "delete", f"{first.address}/24", "dev", "eth0")
        assert not answers_ping(first, BRIDGE_IP, wait_s=1)
        assert answers_ping(second, BRIDGE_IP)
    await network.shutdown()


async def test_a_bridge_that_a_crash_left_half_made_is_finished(
    helper: InProcessHelper, before: SettingTable, instance: str
) -> None:
    links = Links()
    await links.create_bridge(f"{BRIDGE}-1", mac=marks.bridge_mac(instance))
    await links.close()
    network = network_of(helper, before, records=[])
    for _ in range(2):
        for number in (SECOND, THIRD):
            await network.prepare(f"10.9.0.{number}")
        network = network_of(helper, before, records=[])  # the next daemon
    routes = {route["dst"]: route["dev"] for route in json.loads(ip("-json", "route", "show"))}
    assert routes == {
        "10.9.0.0/24": BRIDGE,
        "10.9.0.4/30": f"{BRIDGE}-1",
        "10.9.0.8/30": f"{BRIDGE}-2",
    }
    ip("link", "delete", BRIDGE)  # by a person; the others are no reason to refuse its network
    await network.prepare("10.9.0.2")
    await network.shutdown()
    assert await helper.list_links() == ()


async def test_a_strangers_link_of_a_further_bridges_name(
    helper: InProcessHelper, before: SettingTable
) -> None:
    network = network_of(helper, before, records=[])
    ip("link", "add", f"{BRIDGE}-1", "type", "bridge")
    with pytest.raises(BangerError, match=f"{BRIDGE}-1 is there already") as caught:
        await network.prepare(f"10.9.0.{SECOND}")
    assert "bridge_name" in (caught.value.hint or "")
    await network.prepare(f"10.9.0.{FIRST}")
    await network.shutdown()
    ip("link", "show", f"{BRIDGE}-1")
    ip("link", "delete", f"{BRIDGE}-1")
