"""Names, as a capability: `NAME.vm` resolves while the VM runs (SPEC §4)."""

from __future__ import annotations

from collections.abc import Sequence

from banger.model.records import VMRecord, VMSpec
from banger.network.dnszone import NamedGuest
from banger.network.names import Names
from banger.vm.capabilities import Capability
from banger.vm.subject import Subject


class GuestNames(Capability):
    name = "names"

    def __init__(self, names: Names) -> None:
        self._names = names

    async def seed(self, records: Sequence[VMRecord]) -> None:
        for record in records:
            self._names.put(record.id, named(record, record.spec))
        if records:
            await self._names.bridge_up()

    async def post_start(self, subject: Subject) -> None:
        self._names.put(subject.id, named(subject.record, subject.record.spec))

    async def cleanup(self, subject: Subject) -> None:
        self._names.remove(subject.id)

    async def apply_change(self, subject: Subject, spec: VMSpec) -> bool:
        """Whether names outside are asked for it follows NAT at once."""
        if self._names.get(subject.id) is not None:
            self._names.put(subject.id, named(subject.record, spec))
        return True

    def warnings(self, record: VMRecord) -> tuple[str, ...]:
        return self._names.problems()


def named(record: VMRecord, spec: VMSpec) -> NamedGuest:
    return NamedGuest(record.name, record.runtime.guest_ip, spec.nat_enabled)
