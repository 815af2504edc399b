"""What guests may reach (SPEC §4): the instance's nft tables and the host's forwarding.

Generated whole from the store's records (a VM's tap is in its row's mirror before the tap is made) and
replaced in one transaction, so that there is nothing to remember and nothing to leak: a VM whose tap is in no
row has no rule. The value of net.ipv4.ip_forward before banger is in the store before it is changed. After a
crash tables and setting stay; the next start replaces them, and the planner names what nobody needs.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from banger.config.settings import Settings
from banger.helper.interface import FirewallRules, GuestRule, Helper
from banger.model.records import VMRecord
from banger.network.addresses import mac_of
from banger.network.bridges import Bridges, bridges_of
from banger.store.settings import SettingTable
from banger.system.lockorder import OrderedLock, Rank
from banger.system.programs import find

log = logging.getLogger(__name__)

FORWARDING_KEY = "sysctl/net.ipv4.ip_forward"
FORWARDING_NAME = "net.ipv4.ip_forward"


Others = Callable[[], Awaitable[Sequence[str]]]
"""Who besides banger needs the host to forward; raises OSError where that cannot be seen."""


async def nobody_else() -> Sequence[str]:
    return ()


class Firewall:
    def __init__(
        self,
        helper: Helper,
        settings: Settings,
        *,
        records: Callable[[], Sequence[VMRecord]],
        before: SettingTable,
        bridges: Bridges | None = None,
        others: Others = nobody_else,
    ) -> None:
        """records: all VMs, as they are in the store now. before: where host settings are remembered.
        bridges: the network's, where they are not the usual ones."""
        self._helper = helper
        self._settings = settings
        self._records = records
        self._before = before
        self._bridges = bridges or bridges_of(settings)
        self._others = others
        self._lock = OrderedLock(Rank.LEAF, "firewall")
        self._applied: FirewallRules | None = None
        self._stale = False
        self._others_asked = False

    async def refresh(self) -> None:
        """The tables as the store says now. Does nothing where this daemon has made them so already."""
        async with self._lock:
            await self._refresh()

    async def mend(self) -> None:
        """Likewise, whatever this daemon believes to be there; and nothing of it where there is no VM."""
        async with self._lock:
            self._applied = None
            await (self._refresh() if self._records() else self._remove())

    async def remove(self) -> None:
        """The last VM is gone: the tables go, and forwarding is put back. Idempotent."""
        async with self._lock:
            await self._remove()

    def available(self) -> bool:
        """Whether the host has the program."""
        return find("nft") is not None

    def expected(self) -> bool:
        """Whether this daemon has made tables: others that carry its mark are left over."""
        return self._applied is not None

    def forwarding_changed(self) -> bool:
        """Forwarding was off, and was switched on for VMs; it has not been put back."""
        return self._before.get(FORWARDING_KEY) is not None

    async def drift(self) -> tuple[str, str]:
        """(what is wrong with the tables, what with forwarding), "" each where it is as it was made."""
        async with self._lock:
            rules = self._applied
            if rules is None:
                # a start that could not make them has failed; these run on from an older daemon
                return ("are missing" if self._rules().guests else "", "")
            if self._stale:
                return ("could not be brought up to date", "")
            off = _forwards(rules) and not await self._helper.forwarding()
            forwarding = "is switched off, and VMs with NAT run" if off else ""
            return (await self._helper.firewall_drift(rules), forwarding)

    async def _refresh(self) -> None:
        stale, self._stale = self._stale, True  # a replacement that was cut off may have been done, or not
        rules = self._rules()
        if _forwards(rules):
            await self._forward()
            rules = msgspec.structs.replace(rules, forwarding_was_off=self.forwarding_changed())
        if stale or rules != self._applied:
            await self._helper.apply_firewall(rules)
            self._applied = rules
            log.debug("the firewall knows %d guests", len(rules.guests))
        self._stale = False

    async def _remove(self) -> None:
        self._applied = None
        self._stale = False
        self._others_asked = False
        await self._helper.remove_firewall()
        if not self.forwarding_changed():
            return
        if not await self._helper.others_need_forwarding():
            await self._put_back()
        await self._before.delete(FORWARDING_KEY)

    async def _put_back(self) -> None:
        """Forwarding off, but where others have come to need it meanwhile: then it is theirs."""
        try:
            others = await self._others()
        except OSError as error:
            log.warning("%s stays on: who else needs it cannot be seen: %s", FORWARDING_NAME, error)
            return
        if others:
            log.warning("%s stays on: needed by %s", FORWARDING_NAME, ", ".join(others))
            return
        await self._helper.set_forwarding(False)

    async def _forward(self) -> None:
        """Forwarding on; what was before is remembered first, by whichever instance switched it on."""
        if not await self._helper.forwarding():
            await self._before.put_new(FORWARDING_KEY, "0")
            await self._helper.set_forwarding(True)
            log.info("%s switched on", FORWARDING_NAME)
        elif not self.forwarding_changed() and not self._others_asked:
            if await self._helper.others_need_forwarding():
                await self._before.put_new(FORWARDING_KEY, "0")  # the last of us puts it back
            self._others_asked = True

    def _rules(self) -> FirewallRules:
        settings = self._settings
        guests = [
            GuestRule(
                tap=record.runtime.tap_device,
                mac=mac_of(record.runtime.guest_ip),
                address=record.runtime.guest_ip,
                nat=record.spec.nat_enabled,
            )
            for record in self._records()
            if record.runtime.tap_device
        ]
        return FirewallRules(
            bridge=settings.bridge_name,
            further=self._bridges.further(guest.address for guest in guests),
            address=settings.bridge_ip,
            isolated=settings.network_isolation,
            host_access=settings.host_access,
            guests=tuple(guests),
            forwarding_was_off=self.forwarding_changed(),
        )


def _forwards(rules: FirewallRules) -> bool:
    """Whether the host is a router: to the world, or between bridges whose guests may reach each other."""
    return any(guest.nat for guest in rules.guests) or bool(rules.further and not rules.isolated)
