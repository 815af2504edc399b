"""NAT and the firewall around a guest, as a capability (SPEC §4). The rules come and go with the tap."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from banger.errors import BangerError, ErrorCode
from banger.model.records import VMRecord, VMSpec
from banger.network.firewall import Firewall
from banger.vm.capabilities import Capability
from banger.vm.locks import finish
from banger.vm.subject import Subject

REFRESH_S = 30.0

Lookout = Callable[[str], Awaitable[Sequence[str]]]
"""What of the host stops a guest of this address although it has NAT, in whole sentences."""


async def nobody(_guest_ip: str) -> Sequence[str]:
    return ()


class Nat(Capability):
    name = "nat"

    def __init__(self, firewall: Firewall, lookout: Lookout = nobody) -> None:
        self._firewall = firewall
        self._lookout = lookout
        self._stopped_by: dict[str, tuple[str, ...]] = {}
        """By VM, as its start found it."""

    async def preflight(self, record: VMRecord) -> None:
        if not self._firewall.available():
            raise BangerError(
                ErrorCode.HOST_UNSUITABLE,
                "nft is missing: without it nothing would keep guests from the host's services",
                hint="install nftables (banger doctor says how)",
            )

    async def post_start(self, subject: Subject) -> None:
        if subject.record.spec.nat_enabled:
            self._stopped_by[subject.id] = tuple(await self._lookout(subject.record.runtime.guest_ip))

    def warnings(self, record: VMRecord) -> tuple[str, ...]:
        return self._stopped_by.pop(record.id, ())

    async def cleanup(self, subject: Subject) -> None:
        self._stopped_by.pop(subject.id, None)

    async def seed(self, records: Sequence[VMRecord]) -> None:
        if records:
            await self._firewall.refresh()

    async def changed(self, subject: Subject, before: VMSpec) -> tuple[str, ...]:
        """It has been saved: a caller that goes away does not keep it from being done."""
        await finish(self._firewall.refresh(), deadline_s=REFRESH_S)
        record = subject.record
        if before.nat_enabled or not record.spec.nat_enabled or not record.runtime.tap_device:
            return ()  # it runs not, or has heard of it at its start
        return tuple(await self._lookout(record.runtime.guest_ip))
