"""Capabilities: what a VM can be given besides booting (work disk; later DNS, NAT), as small classes.

A capability gets the services it needs in its constructor and offers hooks; the lifecycle calls the
hooks of all of them and knows none by name. Every hook has a default that does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from banger.model.records import Image, VMRecord, VMSpec
from banger.vmm.protocol import Drive

if TYPE_CHECKING:
    from banger.vm.subject import Subject


class Contribution(msgspec.Struct, frozen=True, kw_only=True):
    """What a capability adds to the machine. Drives come after the root's, in the capabilities' order."""

    drives: tuple[Drive, ...] = ()


class Capability:
    """Base of all capabilities; subclasses override what they need."""

    name = ""

    async def preflight(self, record: VMRecord) -> None:
        """Raise a BangerError when the host cannot offer it. Makes nothing."""

    async def prepare_host(self, subject: Subject, image: Image) -> None:
        """Before the machine is started: make what it needs on the host."""

    def contribute_machine(self, record: VMRecord) -> Contribution:
        """What the machine is configured with."""
        return Contribution()

    async def post_start(self, subject: Subject) -> None:
        """The guest's agent has answered."""

    async def seed(self, records: Sequence[VMRecord]) -> None:
        """At daemon start, after reconcile: the VMs that were found running, and are kept."""

    def warnings(self, record: VMRecord) -> tuple[str, ...]:
        """What does not work of it although the VM runs, in whole sentences; shown when it has started."""
        return ()

    async def cleanup(self, subject: Subject) -> None:
        """The machine has ended (or never began). Idempotent."""

    async def apply_change(self, subject: Subject, spec: VMSpec) -> bool:
        """`vm set`: False when what changes of this capability's waits for the next start."""
        return True

    async def changed(self, subject: Subject, before: VMSpec) -> tuple[str, ...]:
        """`vm set` has saved the record, or tried to: for what is made from the store. Idempotent.
        before: what it was. What does not work of the change, in whole sentences."""
        return ()
