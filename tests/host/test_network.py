"""HostNetwork on real links: the pool, a VM's tap from choice to release, the end of the last VM."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.helper.inprocess import InProcessHelper
from banger.helper.interface import FirewallRules, GuestRule, ObservedLink
from banger.network.addresses import mac_of
from banger.network.firewall import Firewall
from banger.network.host import HostNetwork
from banger.store.database import Database
from banger.store.settings import SettingTable
from tests.capabilities import require

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("netns", "tun")]

VM = "ab" * 32
OTHER = "cd" * 32
GUEST = "10.9.0.2"
SETTINGS = Settings(bridge_name="br-t", bridge_ip="10.9.0.1", cidr=24, tap_pool_size=2)


@pytest.fixture
async def network(helper: InProcessHelper, paths: Paths) -> AsyncIterator[HostNetwork]:
    database = await Database.open(paths.database)
    firewall = Firewall(helper, SETTINGS, records=list, before=SettingTable(database))
    made = HostNetwork(helper, SETTINGS, firewall=firewall)
    await made.prepare(GUEST)
    await made._pool.settled()
    yield made
    await made.shutdown()
    await made.close()
    await database.close()


async def taps(helper: InProcessHelper) -> dict[str, ObservedLink]:
    return {link.name: link for link in await helper.list_links() if link.kind == "tap"}


async def test_a_tap_from_the_pool_and_back(network: HostNetwork, helper: InProcessHelper) -> None:
    assert set(await taps(helper)) == {"tap-pool-0", "tap-pool-1"}
    name = network.choose_tap(VM, GUEST)
    assert name in ("tap-pool-0", "tap-pool-1")
    assert (await taps(helper))[name].vm_id == ""
    await network.make_tap(name, VM, guest=GUEST)
    assert (await taps(helper))[name].vm_id == VM
    await network.release_tap(name, OTHER)  # not its VM's: left alone
    assert (await taps(helper))[name].vm_id == VM
    for _ in range(2):
        await network.release_tap(name, VM)
    assert (await taps(helper))[name].vm_id == ""
    assert name in network.pool_taps()


async def test_an_empty_pool_makes_one_by_the_vms_name(network: HostNetwork, helper: InProcessHelper) -> None:
    for vm_id in ("1" * 64, "2" * 64):
        await network.make_tap(network.choose_tap(vm_id, GUEST), vm_id, guest=GUEST)
    name = network.choose_tap(VM, GUEST)
    assert name == "tap-fc-abababab"
    await network.make_tap(name, VM, guest=GUEST)
    twin = network.choose_tap("abababab" + "0" * 56, GUEST)
    assert twin != name
    assert len(twin) <= 15
    for link in (await taps(helper)).values():
        if link.vm_id:
            await network.release_tap(link.name, link.vm_id)
    assert name not in await taps(helper)


async def test_a_warm_tap_costs_well_under_a_tap_made(network: HostNetwork, helper: InProcessHelper) -> None:
    warm, cold = [], []
    for _ in range(15):
        started = time.perf_counter()
        name = network.choose_tap(VM, GUEST)
        await network.make_tap(name, VM, guest=GUEST)
        warm.append(time.perf_counter() - started)
        await network.release_tap(name, VM)
        started = time.perf_counter()
        await helper.create_tap("tap-fc-0", bridge="br-t", vm_id=VM)
        cold.append(time.perf_counter() - started)
        await helper.delete_tap("tap-fc-0")
    print(f"warm {statistics.median(warm) * 1e3:.2f} ms, cold {statistics.median(cold) * 1e3:.2f} ms")
    assert statistics.median(warm) < statistics.median(cold)


async def test_after_the_last_vm_nothing_is_left_and_it_comes_again(
    network: HostNetwork, helper: InProcessHelper
) -> None:
    await network.shutdown()
    assert await helper.list_links() == ()
    await network.prepare(GUEST)
    await network._pool.settled()
    assert "tap-pool-2" in await taps(helper)  # numbers are not used again


@require("nft")
async def test_tables_of_many_guests_are_compared_whole(helper: InProcessHelper) -> None:
    """nft shows more than a mebibyte of them."""
    addresses = [f"10.9.{number >> 8}.{number & 255}" for number in range(2, 10_002)]
    guests = tuple(
        GuestRule(tap=f"tap-fc-{number}", mac=mac_of(address), address=address)
        for number, address in enumerate(addresses)
    )
    rules = FirewallRules(bridge="br-t", address="10.9.0.1", guests=guests)
    await helper.apply_firewall(rules)
    assert await helper.firewall_drift(rules) == ""
    others = msgspec.structs.replace(rules, guests=guests[:-1])
    assert await helper.firewall_drift(others) == "have been changed by another program"
    await helper.remove_firewall()
