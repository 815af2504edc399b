"""Kept work with memory and no git: what the lifecycle's and the daemon's tests run on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec

from banger.errors import BangerError, ErrorCode
from banger.model.progress import Progress, no_progress
from banger.model.records import VMRecord, Workspace, now
from banger.model.work import Work
from banger.workspace.errors import WorkNotKept


class FakeWorkspaces:
    """A WorkspaceService whose stores are entries in a dict.

    live, disk: what keeping that way raises next and from then on; None: it works. hold: keeps wait for it.
    finds: what a keep finds to be new. files_only: why it cannot keep the history. calls: in order, such as
    "live box".
    """

    def __init__(self) -> None:
        self.stores: dict[str, Work] = {}
        self.brought: dict[str, Mapping[str, str]] = {}
        self.calls: list[str] = []
        self.live: Exception | None = None
        self.disk: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.finds = True
        self.files_only = ""
        self.keeping = asyncio.Event()

    async def open(self) -> None:
        self.calls.append("open")

    async def bring(self, record: VMRecord, workspace: Workspace, *, refs: Mapping[str, str]) -> None:
        self.calls.append(f"bring {record.name}")
        self.brought[record.id] = refs
        self.stores[record.id] = Work(vm_id=record.id, vm_name=record.name, workspace=workspace)

    async def keep_live(
        self, record: VMRecord, *, ignored: bool = False, progress: Progress = no_progress
    ) -> Work:
        return await self._keep("live", record, self.live, how="guest-git")

    async def keep_disk(
        self, record: VMRecord, *, ignored: bool = False, progress: Progress = no_progress
    ) -> Work:
        return await self._keep("disk", record, self.disk, how="disk")

    async def _keep(self, way: str, record: VMRecord, failure: Exception | None, *, how: str) -> Work:
        self.calls.append(f"{way} {record.name}")
        self.keeping.set()
        if self.hold is not None:
            await self.hold.wait()
        if failure is not None:
            raise failure
        if record.workspace is None:
            raise WorkNotKept("nothing was brought", vm_name=record.name)
        work = Work(
            vm_id=record.id,
            vm_name=record.name,
            workspace=record.workspace,
            kept_at=now(),
            how=how,
            changed=self.finds,
            files_only=self.files_only,
        )
        self.stores[record.id] = work
        return work

    def list(self) -> Sequence[Work]:
        return list(self.stores.values())

    def find(self, reference: str, *, existing: frozenset[str] = frozenset()) -> Work:
        named = [work for work in self.stores.values() if reference in (work.vm_id, work.vm_name)]
        named.sort(key=lambda work: work.vm_id in existing)
        if not named:
            raise BangerError(ErrorCode.NOT_FOUND, f"no work is kept of {reference!a}")
        return named[-1]

    async def pack(self, vm_id: str, have: Sequence[str]) -> AsyncIterator[bytes]:
        if "f" * 40 in have:
            raise BangerError(ErrorCode.INVALID_ARGUMENT, "have: no such commit")
        yield b"PACK"
        yield ",".join(have).encode()

    async def patch(self, vm_id: str, *, base: str = "") -> AsyncIterator[bytes]:
        yield f"diff from {base or 'what was brought'}\n".encode()
        if base == "0" * 40:
            raise WorkNotKept("the store is broken")

    async def vm_gone(self, vm_id: str) -> Work | None:
        self.calls.append("gone")
        work = self.stores.get(vm_id)
        if work is None or not work.changed:
            self.stores.pop(vm_id, None)
            return None
        return work

    async def forget(self, vm_id: str) -> None:
        self.calls.append("forget")
        self.stores.pop(vm_id, None)

    def age(self, vm_id: str, **fields: object) -> None:
        """Change a store's record."""
        self.stores[vm_id] = msgspec.structs.replace(self.stores[vm_id], **fields)
