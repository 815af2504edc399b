"""NAT and the firewall around a guest, as a capability (SPEC §4). The rules come and go with the tap."""

from __future__ import annotations

from collections.abc import Sequence

from banger.errors import BangerError, ErrorCode
from banger.model.records import VMRecord
from banger.network.firewall import Firewall
from banger.vm.capabilities import Capability
from banger.vm.locks import finish
from banger.vm.subject import Subject

REFRESH_S = 30.0


class Nat(Capability):
    name = "nat"

    def __init__(self, firewall: Firewall) -> None:
        self._firewall = firewall

    async def preflight(self, record: VMRecord) -> None:
        if not self._firewall.available():
            raise BangerError(
                ErrorCode.HOST_UNSUITABLE,
                "nft is missing: without it nothing would keep guests from the host's services",
                hint="install nftables (banger doctor says how)",
            )

    async def seed(self, records: Sequence[VMRecord]) -> None:
        if records:
            await self._firewall.refresh()

    async def changed(self, subject: Subject) -> None:
        """It has been saved: a caller that goes away does not keep it from being done."""
        await finish(self._firewall.refresh(), deadline_s=REFRESH_S)
