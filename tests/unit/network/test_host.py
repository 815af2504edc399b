"""HostNetwork: whose a tap is between its choice, its record and its mark."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from banger.config.settings import Settings
from banger.helper.interface import Helper, ObservedLink
from banger.network.bridges import Bridges
from banger.network.firewall import Firewall
from banger.network.host import HostNetwork

pytestmark = pytest.mark.anyio

ONE, TWO = "1" * 64, "2" * 64
INSTANCE = "0" * 16
GUEST = "172.16.0.2"


class Links:
    """The helper's taps, with memory."""

    def __init__(self) -> None:
        self.links: dict[str, ObservedLink] = {}
        self.bridges: dict[str, tuple[str, tuple[str, ...], bool]] = {}

    def taps(self) -> set[str]:
        return {link.name for link in self.links.values() if link.kind == "tap"}

    async def find_link(self, name: str) -> ObservedLink | None:
        return self.links.get(name)

    async def list_links(self) -> tuple[ObservedLink, ...]:
        return tuple(self.links.values())

    async def ensure_bridge(
        self, name: str, *, address: str, prefix: int, routes: tuple[str, ...], proxy_arp: bool
    ) -> None:
        self.links[name] = ObservedLink(name=name, kind="bridge", instance=INSTANCE, vm_id="")
        self.bridges[name] = (f"{address}/{prefix}", routes, proxy_arp)

    async def delete_bridge(self, name: str) -> None:
        del self.links[name]

    async def create_tap(self, name: str, *, bridge: str, vm_id: str) -> None:
        self.links[name] = ObservedLink(
            name=name, kind="tap", instance=INSTANCE, vm_id=vm_id, master=bridge, carrier=False
        )

    async def mark_tap(self, name: str, *, vm_id: str) -> None:
        self.links[name] = msgspec.structs.replace(self.links[name], vm_id=vm_id)

    async def delete_tap(self, name: str) -> None:
        self.links.pop(name, None)


class NoFirewall:
    async def remove(self) -> None:
        pass


async def network(links: Links, pool: int) -> HostNetwork:
    """With a pool that is full."""
    made = HostNetwork(
        cast(Helper, links), Settings(tap_pool_size=pool), firewall=cast(Firewall, NoFirewall())
    )
    await made.prepare("")
    await made._pool.settled()
    return made


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_pool_tap_that_was_chosen_and_never_marked_goes_back(recorded: bool) -> None:
    """A start that fails in between: at the record, or in a step that runs beside it."""
    links = Links()
    host = await network(links, 1)
    name = host.choose_tap(ONE, GUEST)
    assert host.pool_taps() == frozenset()
    await host.release_tap(name if recorded else "", ONE)
    assert host.pool_taps() == {name} == links.taps()
    await host.release_tap("", ONE)
    assert host.choose_tap(TWO, GUEST) == name


async def test_where_the_pool_has_no_room_it_is_deleted() -> None:
    links = Links()
    host = await network(links, 1)
    name = host.choose_tap(ONE, GUEST)
    host.warm()
    await host._pool.settled()
    await host.release_tap(name, ONE)
    assert host.pool_taps() == links.taps()
    assert name not in links.links


async def test_a_tap_goes_back_once_and_is_then_anothers() -> None:
    links = Links()
    host = await network(links, 1)
    name = host.choose_tap(ONE, GUEST)
    await host.make_tap(name, ONE, guest=GUEST)
    await host.release_tap(name, ONE)
    assert host.choose_tap(TWO, GUEST) == name
    await host.release_tap(name, ONE)  # an old record, before the mark and after it
    assert host.pool_taps() == frozenset()
    await host.make_tap(name, TWO, guest=GUEST)
    await host.release_tap(name, ONE)
    assert links.links[name].vm_id == TWO


async def test_a_name_that_was_never_made_is_free_again() -> None:
    host = await network(Links(), 0)
    name = host.choose_tap(ONE, GUEST)
    await host.release_tap("", ONE)
    assert host.choose_tap(ONE, GUEST) == name


async def test_a_guest_is_on_the_bridge_of_its_address_and_all_go_with_the_last() -> None:
    links = Links()
    host = HostNetwork(
        cast(Helper, links),
        Settings(tap_pool_size=1),
        firewall=cast(Firewall, NoFirewall()),
        bridges=Bridges(name="br-fc", address="172.16.0.1", prefix=24, guests=64),
    )
    await host.prepare("172.16.0.2")
    await host._pool.settled()
    assert set(links.bridges) == {"br-fc"}
    for _ in range(2):
        await host.prepare("172.16.0.130")
    assert links.bridges["br-fc"] == ("172.16.0.1/24", (), False)
    assert links.bridges["br-fc-2"] == ("172.16.0.1/32", ("172.16.0.128/26",), False)
    name = host.choose_tap(ONE, "172.16.0.130")  # none of the pool's, which are on the first
    assert not name.startswith("tap-pool-")
    await host.make_tap(name, ONE, guest="172.16.0.130")
    assert links.links[name].master == "br-fc-2"
    await host.release_tap(name, ONE)
    await host.shutdown()
    assert links.links == {}


async def test_guests_that_may_reach_each_other_do_so_across_bridges() -> None:
    for several, guests in ((True, 64), (False, 256)):
        links = Links()
        host = HostNetwork(
            cast(Helper, links),
            Settings(tap_pool_size=0, network_isolation=False),
            firewall=cast(Firewall, NoFirewall()),
            bridges=Bridges(name="br-fc", address="172.16.0.1", prefix=24, guests=guests),
        )
        await host.prepare("172.16.0.2")
        assert links.bridges["br-fc"][2] is several
