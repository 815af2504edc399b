"""HostNetwork: the instance's bridges, its taps and its firewall (SPEC §4).

The one door of this room. A tap's name is chosen first and made after, so that the caller can record it
in between. All kernel work goes through the helper. After a crash bridges and taps stay; they carry the
instance's mark and reconcile finds them. Which bridge a guest is on follows from its address (bridges.py).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

from banger.config.settings import Settings
from banger.helper.interface import Helper
from banger.model.ids import short_id
from banger.network.bridges import Bridges, bridges_of
from banger.network.firewall import Firewall
from banger.network.pool import TapPool, pool_index
from banger.system.lockorder import OrderedLock, Rank

log = logging.getLogger(__name__)

TAP_PREFIX = "tap-fc-"
Forget = Callable[[], Awaitable[None]]


async def _nothing_recorded() -> None:
    """For a tap that is in no VM's record."""


class BridgeFollower(Protocol):
    """What comes and goes with the bridge. Both are quick, idempotent, and tell of failures elsewhere."""

    async def bridge_up(self) -> None: ...

    async def bridge_down(self) -> None: ...


class HostNetwork:
    def __init__(
        self,
        helper: Helper,
        settings: Settings,
        *,
        firewall: Firewall,
        followers: Sequence[BridgeFollower] = (),
        bridges: Bridges | None = None,
    ) -> None:
        """followers: hear, in this order, that the first bridge is there; backwards, that it goes.
        bridges: the firewall's, where they are not the usual ones."""
        self.firewall = firewall
        self.bridges = bridges or bridges_of(settings)
        self._helper = helper
        self._settings = settings
        self._pool = TapPool(
            self.bridges.idle(settings.tap_pool_size), make=self._make_idle, delete=helper.delete_tap
        )
        self._ready: set[str] = set()
        self._preparing = OrderedLock(Rank.LEAF, "bridge")
        self._followers = tuple(followers)
        self._used: dict[str, str] = {}
        """Names that are taken, and by which VM; "" where a link's alias says it, or the pool has it."""

    async def prepare(self, guest: str) -> None:
        """The first bridge is there, up, with its address, and the one that this address belongs on.

        Cheap once they are; raises when a name is another's.
        """
        first, own = self.bridges.name, self.bridges.of(guest)
        if {first, own} <= self._ready:
            return
        async with self._preparing:
            if first not in self._ready:
                await self._ensure(first)
                for follower in self._followers:
                    await follower.bridge_up()
                self._ready.add(first)
                self._pool.warm()
            if own not in self._ready:
                await self._ensure(own)
                self._ready.add(own)

    async def _ensure(self, bridge: str) -> None:
        """Guests that may reach each other do so across bridges too: the host answers for those elsewhere."""
        bridges = self.bridges
        await self._helper.ensure_bridge(
            bridge,
            address=bridges.address,
            prefix=bridges.prefix_of(bridge),
            routes=bridges.routes(bridge),
            proxy_arp=bridges.several() and not self._settings.network_isolation,
        )

    def seed(self, taps: Collection[str]) -> None:
        """At daemon start: the names of all taps that exist, whosever they are."""
        self._pool.seed(taps)
        self._used.update(dict.fromkeys(taps, ""))

    def pool_taps(self) -> frozenset[str]:
        return self._pool.names()

    def choose_tap(self, vm_id: str, guest: str) -> str:
        """A pool tap where the guest's address belongs on the first bridge, as those do; else a free name for
        one to be made. Nothing on the host changes."""
        name = self._pool.take() if self.bridges.of(guest) == self.bridges.name else None
        if name is None:
            name = f"{TAP_PREFIX}{short_id(vm_id)}"
            number = 0
            while name in self._used:  # 15 bytes are all a link's name may have
                number += 1
                name = f"{TAP_PREFIX}{vm_id[: 7 - len(str(number))]}{number}"
        self._used[name] = vm_id
        return name

    async def make_tap(self, name: str, vm_id: str, *, guest: str) -> None:
        """Make the chosen tap, or mark the pool's as this VM's."""
        if pool_index(name) is not None:
            await self._helper.mark_tap(name, vm_id=vm_id)
        else:
            await self._helper.create_tap(name, bridge=self.bridges.of(guest), vm_id=vm_id)

    async def release_tap(self, name: str, vm_id: str, *, forget: Forget | None = None) -> None:
        """Back to the pool, or deleted; so is what was chosen for the VM and never recorded (name may be "").

        Idempotent; a name that is now another's is left alone. forget: takes it out of the VM's record,
        before another VM can be given the name.
        """
        chosen = {other for other, owner in self._used.items() if owner == vm_id}
        for each in sorted({name, *chosen} - {""}):
            await self._release(each, vm_id, forget or _nothing_recorded)

    async def _release(self, name: str, vm_id: str, forget: Forget) -> None:
        link = await self._helper.find_link(name)
        pooled = pool_index(name) is not None
        unmarked = link is not None and pooled and not link.vm_id and self._used.get(name) == vm_id
        if link is None or (link.vm_id != vm_id and not unmarked):
            if self._used.get(name) in ("", vm_id):
                del self._used[name]
            return
        if pooled and not link.carrier:
            await self._helper.mark_tap(name, vm_id="")
            await forget()
            if self._pool.put_back(name):
                self._used[name] = ""
                return
        await self._helper.delete_tap(name)
        await forget()
        self._used.pop(name, None)

    def warm(self) -> None:
        """Fill the pool up in the background, where the bridge is up."""
        if self._ready:
            self._pool.warm()

    async def shutdown(self) -> None:
        """The last VM is gone: pool, bridges, tables and forwarding go too.

        The caller sees to it that none comes meanwhile.
        """
        async with self._preparing:
            self._ready.clear()
            await self._pool.drain()
            for follower in reversed(self._followers):
                await follower.bridge_down()
            for link in await self._helper.list_links():
                if link.kind == "bridge" and self.bridges.own(link.name):
                    await self._helper.delete_bridge(link.name)
        await self.firewall.remove()

    async def close(self) -> None:
        """The daemon ends: stop warming. What VMs use stays; idle taps go, they are made again quickly."""
        await self._pool.close()
        await self._pool.drain()

    async def _make_idle(self, name: str) -> None:
        await self._helper.create_tap(name, bridge=self.bridges.name, vm_id="")
