"""VMService: the VMs' lifecycle. (contract; being written)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from banger.api.requests import CreateVM, KillVM, SetVM
from banger.model.progress import Progress
from banger.model.records import VMRecord, VMStats


class VMServiceContract(Protocol):
    """What daemon/ calls. All references were given by a client; resolve() turns them into records."""

    async def open(self) -> None:
        """Reconcile store and host; then background loops may run."""
        ...

    async def close(self) -> None:
        """Let go of everything; VMs run on."""
        ...

    def list(self) -> Sequence[VMRecord]: ...

    def resolve(self, reference: str) -> VMRecord:
        """Full id, else exact name, else unique id prefix; NOT_FOUND or AMBIGUOUS otherwise."""
        ...

    async def create(self, request: CreateVM, progress: Progress) -> VMRecord: ...

    async def start(self, vm_id: str, progress: Progress) -> VMRecord: ...

    async def stop(self, vm_id: str, progress: Progress) -> VMRecord: ...

    async def kill(self, vm_id: str, request: KillVM, *, progress: Progress) -> VMRecord: ...

    async def restart(self, vm_id: str, progress: Progress) -> VMRecord: ...

    async def delete(self, vm_id: str, progress: Progress) -> VMRecord: ...

    async def set(self, vm_id: str, request: SetVM, *, progress: Progress) -> VMRecord: ...

    async def touch(self, vm_id: str) -> VMRecord:
        """last_touched_at := now. For exec, shell, cp."""
        ...

    async def stats(self, vm_id: str) -> VMStats: ...
