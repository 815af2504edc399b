"""What the daemon needs of the services it serves; compose.py brings the real ones, tests bring fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from banger.api.replies import CachePruned, ImageCatalog, KernelCatalog
from banger.api.requests import (
    CreateVM,
    ImportKernel,
    KillVM,
    PublishPorts,
    PullImage,
    RegisterImage,
    SetVM,
    SetWorkspace,
    UnpublishPorts,
    WhyNet,
)
from banger.model.guestview import GuestFigures, PublishedState, VMPorts
from banger.model.netwhy import NetWhy
from banger.model.progress import Progress
from banger.model.records import Image, Kernel, VMHealth, VMRecord, VMStats
from banger.model.work import Work
from banger.vm.planner import Finding


class VMs(Protocol):
    """The part of vm.service.VMService that the routes call."""

    def list(self) -> Sequence[VMRecord]: ...

    def resolve(self, reference: str) -> VMRecord: ...

    async def create(self, request: CreateVM, progress: Progress) -> VMRecord: ...

    async def start(self, vm_id: str, progress: Progress) -> VMRecord: ...

    async def stop(self, vm_id: str, progress: Progress) -> VMRecord: ...

    async def kill(self, vm_id: str, request: KillVM, *, progress: Progress) -> VMRecord: ...

    async def restart(self, vm_id: str, progress: Progress) -> VMRecord: ...

    async def delete(self, vm_id: str, progress: Progress, *, discard_work: bool = False) -> VMRecord: ...

    async def delete_if_not_running(
        self, vm_id: str, progress: Progress, *, discard_work: bool = False
    ) -> VMRecord: ...

    async def delete_by_itself(self, vm_id: str, progress: Progress) -> VMRecord:
        """Of one with auto_remove, which it has no more where its work cannot be kept."""
        ...

    async def set_workspace(self, vm_id: str, request: SetWorkspace) -> VMRecord: ...

    async def keep(self, vm_id: str, progress: Progress, *, ignored: bool = False) -> Work: ...

    async def set(self, vm_id: str, request: SetVM, *, progress: Progress) -> VMRecord: ...

    async def publish(self, vm_id: str, request: PublishPorts) -> VMRecord: ...

    async def unpublish(self, vm_id: str, request: UnpublishPorts) -> VMRecord: ...

    def published(self, record: VMRecord) -> tuple[PublishedState, ...]: ...

    async def touch(self, vm_id: str) -> VMRecord: ...

    async def stats(self, vm_id: str) -> VMStats: ...

    async def health(self, vm_id: str) -> VMHealth: ...

    async def figures(self, vm_id: str) -> GuestFigures | None: ...

    async def ports(self, vm_id: str) -> VMPorts: ...

    async def net_why(self, vm_id: str, request: WhyNet) -> NetWhy: ...

    async def audit(self) -> Sequence[Finding]: ...

    async def repair(self, findings: Sequence[Finding]) -> Sequence[tuple[Finding, BaseException]]: ...


class Images(Protocol):
    def list(self) -> Sequence[Image]: ...

    def catalog(self) -> ImageCatalog: ...

    def resolve(self, reference: str) -> Image:
        """Full id, else exact name, else unique id prefix; NOT_FOUND or AMBIGUOUS otherwise."""
        ...

    async def pull(self, request: PullImage, progress: Progress) -> Image: ...

    async def register(self, request: RegisterImage) -> Image: ...

    async def promote(self, reference: str, progress: Progress) -> Image: ...

    async def prune_cache(self, *, dry_run: bool) -> CachePruned: ...

    async def delete(self, reference: str) -> Image:
        """The image as it was. IN_USE when VMs have it."""
        ...


class Kernels(Protocol):
    def list(self) -> Sequence[Kernel]: ...

    def get(self, name: str) -> Kernel: ...

    def catalog(self) -> KernelCatalog: ...

    async def pull(self, name: str, progress: Progress) -> Kernel: ...

    async def take_in(self, request: ImportKernel, progress: Progress) -> Kernel: ...

    async def remove(self, name: str) -> Kernel: ...


class Works(Protocol):
    """The part of workspace.service.WorkspaceService that the routes call."""

    def list(self) -> Sequence[Work]: ...

    def find(self, reference: str, *, existing: frozenset[str] = frozenset()) -> Work:
        """By the VM's id, name or unique id prefix; of one name that of an existing VM, else the newest."""
        ...

    def pack(self, vm_id: str, have: Sequence[str]) -> AsyncIterator[bytes]: ...

    def patch(self, vm_id: str, *, base: str = "") -> AsyncIterator[bytes]: ...

    async def forget(self, vm_id: str) -> None: ...


def no_warnings() -> Sequence[str]:
    return ()


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """instance: 16 hex digits. close: lets go of everything, last first; VMs run on. warnings: what does not
    work now of what all VMs share, in whole sentences."""

    instance: str
    vms: VMs
    images: Images
    kernels: Kernels
    works: Works
    close: Callable[[], Awaitable[None]]
    warnings: Callable[[], Sequence[str]] = no_warnings
