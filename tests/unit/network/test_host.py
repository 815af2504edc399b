"""HostNetwork: whose a tap is between its choice, its record and its mark."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from banger.config.settings import Settings
from banger.helper.interface import Helper, ObservedLink
from banger.network.firewall import Firewall
from banger.network.host import HostNetwork

pytestmark = pytest.mark.anyio

ONE, TWO = "1" * 64, "2" * 64
INSTANCE = "0" * 16


class Links:
    """The helper's taps, with memory."""

    def __init__(self) -> None:
        self.links: dict[str, ObservedLink] = {}

    async def list_links(self) -> tuple[ObservedLink, ...]:
        return tuple(self.links.values())

    async def ensure_bridge(self, name: str, *, address: str, prefix: int) -> None:
        pass

    async def delete_bridge(self, name: str) -> None:
        pass

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
    await made.prepare()
    await made._pool.settled()
    return made


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_pool_tap_that_was_chosen_and_never_marked_goes_back(recorded: bool) -> None:
    """A start that fails in between: at the record, or in a step that runs beside it."""
    links = Links()
    host = await network(links, 1)
    name = host.choose_tap(ONE)
    assert host.pool_taps() == frozenset()
    await host.release_tap(name if recorded else "", ONE)
    assert host.pool_taps() == {name} == set(links.links)
    await host.release_tap("", ONE)
    assert host.choose_tap(TWO) == name


async def test_where_the_pool_has_no_room_it_is_deleted() -> None:
    links = Links()
    host = await network(links, 1)
    name = host.choose_tap(ONE)
    host.warm()
    await host._pool.settled()
    await host.release_tap(name, ONE)
    assert host.pool_taps() == set(links.links)
    assert name not in links.links


async def test_a_tap_goes_back_once_and_is_then_anothers() -> None:
    links = Links()
    host = await network(links, 1)
    name = host.choose_tap(ONE)
    await host.make_tap(name, ONE)
    await host.release_tap(name, ONE)
    assert host.choose_tap(TWO) == name
    await host.release_tap(name, ONE)  # an old record, before the mark and after it
    assert host.pool_taps() == frozenset()
    await host.make_tap(name, TWO)
    await host.release_tap(name, ONE)
    assert links.links[name].vm_id == TWO


async def test_a_name_that_was_never_made_is_free_again() -> None:
    host = await network(Links(), 0)
    name = host.choose_tap(ONE)
    await host.release_tap("", ONE)
    assert host.choose_tap(ONE) == name
