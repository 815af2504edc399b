"""WorkspaceService: the work of every VM's workspace, kept on the host.

Used by vm/ and the daemon. STATE/work/<vm id>/ is a WorkStore; `staging-*` beside them are files on their
way in, removed by `open`. The store of a VM outlives it while there is work in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from banger.model.progress import Progress, no_progress
from banger.model.records import VMRecord, Workspace
from banger.model.work import Work
from banger.workspace.repository import Repository


class Staged(NamedTuple):
    """Files of a workspace on the host. repository: HostRepository.adopt of them; notes: what is missing."""

    repository: Repository
    notes: tuple[str, ...]


StageGuest = Callable[[str, str, str], Awaitable[Staged]]
"""(vm_dir, guest_path, folder): copy the guest's folder into the (empty, private) host folder."""
StageDisk = Callable[[str, str, str], Awaitable[Staged]]
"""(work_disk, inner_path, folder): the same from an ext4 that nobody uses."""


class WorkspaceService:
    def __init__(self, work_dir: str, *, stage_guest: StageGuest, stage_disk: StageDisk) -> None:
        self._work_dir = work_dir
        self._stage_guest = stage_guest
        self._stage_disk = stage_disk

    async def open(self) -> None:
        """Sweep what a crash left."""
        raise NotImplementedError

    async def bring(self, record: VMRecord, workspace: Workspace, *, refs: Mapping[str, str]) -> None:
        """A (new) preparation. refs: KeptRef names (`HEAD`, `heads/main`, `index`) -> ids brought."""
        raise NotImplementedError

    async def keep_live(
        self, record: VMRecord, *, ignored: bool = False, progress: Progress = no_progress
    ) -> Work:
        """Of a running VM. Raises WorkNotKept."""
        raise NotImplementedError

    async def keep_disk(
        self, record: VMRecord, *, ignored: bool = False, progress: Progress = no_progress
    ) -> Work:
        """Of a VM that is not alive. Raises WorkNotKept."""
        raise NotImplementedError

    def list(self) -> Sequence[Work]:
        raise NotImplementedError

    def find(self, reference: str, *, existing: frozenset[str] = frozenset()) -> Work:
        """By VM id, name or unique prefix of the id; of several of one name an existing VM's, else the newest.

        existing: ids of the VMs that are there. BangerError NOT_FOUND or AMBIGUOUS.
        """
        raise NotImplementedError

    def pack(self, vm_id: str, have: Sequence[str]) -> AsyncIterator[bytes]:
        """A pack of all refs, without what the commits in `have` reach (as far as the store knows those)."""
        raise NotImplementedError

    def patch(self, vm_id: str, *, base: str = "") -> AsyncIterator[bytes]:
        """Binary patch from a commit, default what was brought, to the files as they were kept."""
        raise NotImplementedError

    async def vm_gone(self, vm_id: str) -> Work | None:
        """The VM is deleted: its work if there is any, else the store is removed."""
        raise NotImplementedError

    async def forget(self, vm_id: str) -> None:
        """Remove the store."""
        raise NotImplementedError
