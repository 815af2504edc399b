"""WorkspaceService: the work of every VM's workspace, kept on the host.

Used by vm/ and the daemon. STATE/work/<vm id>/ is a WorkStore with two records (workfiles); `staging-*`
beside those folders are files on their way in, swept by `open`. The store of a VM outlives it while there is
work in it. One keep of a VM at a time; a keep that fails or is cancelled leaves the store as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from msgspec import structs

from banger.errors import BangerError, ErrorCode
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.model.records import VMRecord, Workspace, now
from banger.model.references import resolve
from banger.model.work import Work, WorkChanges
from banger.system.threads import in_thread
from banger.workspace.errors import GitMissing, WorkNotKept
from banger.workspace.guestrepository import GuestRepository
from banger.workspace.hostrepository import HostRepository
from banger.workspace.names import OLD
from banger.workspace.repository import Repository
from banger.workspace.snapshot import Brought, Snapshot, take
from banger.workspace.store import WorkStore, sweep
from banger.workspace.workfiles import (
    BroughtRecord,
    WorkRecord,
    is_moving,
    mark_moving,
    read_brought,
    read_work,
    write_brought,
    write_work,
)

log = logging.getLogger("banger.workspace")

_STAGING = "staging-"
_VM_ID = re.compile(r"[0-9a-f]{64}\Z")
_MAX_NOTES = 50
_HOME = "/root/"


class Staged(NamedTuple):
    """Files of a workspace on the host. repository: HostRepository.adopt of them; notes: what is missing."""

    repository: HostRepository
    notes: tuple[str, ...]


StageGuest = Callable[[str, str, str], Awaitable[Staged]]
"""(vm_dir, guest_path, folder): copy the guest's folder into the (empty, private) host folder."""
StageDisk = Callable[[str, str, str], Awaitable[Staged]]
"""(work_disk, inner_path, folder): the same from an ext4 that nobody uses."""


class WorkspaceService:
    """work_dir: Paths.work_dir."""

    def __init__(self, work_dir: str, *, stage_guest: StageGuest, stage_disk: StageDisk) -> None:
        self._work_dir = work_dir
        self._stage_guest = stage_guest
        self._stage_disk = stage_disk
        self._locks: dict[str, asyncio.Lock] = {}

    async def open(self) -> None:
        """Sweep what a crash left, and read again what it left unsaid."""
        await in_thread(self._sweep)
        for vm_id in self._ids():
            if is_moving(self._folder(vm_id)):
                try:
                    await self._say_again(vm_id)
                except BangerError as error:
                    log.warning("the work of %s cannot be read: %s", vm_id, error.brief)

    async def bring(self, record: VMRecord, workspace: Workspace, *, refs: Mapping[str, str]) -> None:
        """A (new) preparation. refs: KeptRef names (`HEAD`, `heads/main`, `index`) -> ids brought.

        What was kept of an earlier one stays, as old refs.
        """
        folder = self._folder(record.id)
        async with self._lock(record.id):
            await in_thread(partial(mark_moving, folder))
            store = WorkStore(folder)
            await store.retire()
            await in_thread(
                partial(
                    write_brought,
                    folder,
                    BroughtRecord(vm_name=record.name, workspace=workspace, refs=dict(refs)),
                )
            )
            kept = await store.kept()
            work = Work(
                vm_id=record.id,
                vm_name=record.name,
                workspace=workspace,
                changed=bool(kept),
                head=workspace.base_commit,
                branch=workspace.branch_name,
                refs=kept,
                cut=store.cut(),
            )
            await in_thread(partial(write_work, folder, WorkRecord(work=work)))

    async def keep_live(
        self, record: VMRecord, *, ignored: bool = False, progress: Progress = no_progress
    ) -> Work:
        """Of a running VM: by its own git, else by its files. Raises WorkNotKept."""
        workspace = self._workspace(record)
        progress(ProgressEvent(step="keep_work", message=f"keeping the work in {record.name}"))
        async with self._lock(record.id):
            try:
                return await self._by_guest_git(record, workspace, ignored=ignored)
            except BangerError as error:
                _log_fallback(record, error)
                first = error
            stage = partial(self._stage_guest, record.runtime.vm_dir, workspace.guest_path)
            return await self._by_files(record, workspace, stage, ignored=ignored, first=first)

    async def keep_disk(
        self, record: VMRecord, *, ignored: bool = False, progress: Progress = no_progress
    ) -> Work:
        """Of a VM that is not alive: its work disk is read. Raises WorkNotKept."""
        workspace = self._workspace(record)
        disk = record.runtime.work_disk_path
        async with self._lock(record.id):
            before = await in_thread(partial(read_work, self._folder(record.id)))
            if before and before.disk == _stamp(disk) and (before.ignored or not ignored):
                return before.work
            progress(ProgressEvent(step="keep_work", message=f"reading {record.name}'s work off its disk"))
            inner = workspace.guest_path.removeprefix(_HOME).strip("/")
            stage = partial(self._stage_disk, disk, inner)
            return await self._by_files(record, workspace, stage, ignored=ignored, disk=disk)

    def list(self) -> Sequence[Work]:
        """Of every VM that had a workspace, gone ones too. Damaged ones are logged, left out."""
        found = []
        for vm_id in self._ids():
            try:
                record = read_work(self._folder(vm_id))
            except BangerError as error:
                log.warning("%s", error.brief)
                continue
            if record is not None:
                found.append(record.work)
        return sorted(found, key=lambda work: (work.vm_name, work.vm_id))

    def find(self, reference: str, *, existing: frozenset[str] = frozenset()) -> Work:
        """By VM id, name or unique prefix of the id; of one name the existing VM's, else the newest.

        existing: ids of the VMs that are there. BangerError NOT_FOUND or AMBIGUOUS.
        """
        works = self.list()
        named = [work for work in works if work.vm_name == reference]
        if len(named) > 1:
            there = [work for work in named if work.vm_id in existing]
            return max(there or named, key=_age)
        found = resolve(reference, [(work.vm_id, work.vm_name) for work in works], what="kept work")
        return next(work for work in works if work.vm_id == found)

    def pack(self, vm_id: str, have: Sequence[str]) -> AsyncIterator[bytes]:
        """A pack of all refs, without what the commits in `have` reach (as far as the store knows those)."""
        return WorkStore(self._folder(vm_id)).pack(have)

    async def patch(self, vm_id: str, *, base: str = "") -> AsyncIterator[bytes]:
        """Binary patch from a commit, default what was brought, to the files as they were kept.

        Nothing when the files are as brought. BangerError NOT_FOUND when the base is not in the store.
        """
        record = await in_thread(partial(read_work, self._folder(vm_id)))
        store = WorkStore(self._folder(vm_id))
        if record is None or not store.exists or not record.tree:
            return
        workspace = record.work.workspace
        if base:
            wanted = [base]
        elif workspace.mode == "metadata_only":
            wanted = [workspace.base_commit]
        else:
            wanted = [workspace.brought_commit, workspace.base_commit]
        for commit in wanted:
            found = await store.has(commit)
            if found:
                break
        else:
            raise BangerError(
                ErrorCode.NOT_FOUND,
                f"commit {wanted[0][:64]!a} is not in the work kept of {record.work.vm_name}",
                hint="without --base-commit the patch begins at what was brought",
            )
        if not await store.has_tree(record.tree):
            return
        async for chunk in store.patch(found, record.tree):
            yield chunk

    async def vm_gone(self, vm_id: str) -> Work | None:
        """The VM is deleted: its work if there is any, else the store is removed."""
        record = await in_thread(partial(read_work, self._folder(vm_id)))
        if record is not None and record.work.refs:
            return record.work
        await self.forget(vm_id)
        return None

    async def forget(self, vm_id: str) -> None:
        """Remove the store."""
        async with self._lock(vm_id):
            folder = self._folder(vm_id)
            # a name that `open` removes, should this be cut off
            going = f"{self._work_dir}/{_STAGING}{secrets.token_hex(8)}"
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, going)
                await in_thread(partial(shutil.rmtree, going))
        self._locks.pop(vm_id, None)

    async def _by_guest_git(self, record: VMRecord, workspace: Workspace, *, ignored: bool) -> Work:
        repository = GuestRepository(record.runtime.vm_dir, workspace.guest_path)
        try:
            return await self._keep(record, workspace, repository, ignored=ignored)
        finally:
            await repository.aclose()

    async def _by_files(
        self,
        record: VMRecord,
        workspace: Workspace,
        stage: Callable[[str], Awaitable[Staged]],
        *,
        ignored: bool,
        first: BangerError | None = None,
        disk: str = "",
    ) -> Work:
        """Files on the host; with their history where that can be had. first: what was tried before."""
        folder = f"{self._work_dir}/{_STAGING}{secrets.token_hex(8)}"
        os.makedirs(folder, mode=0o700)
        tried = [first] if first is not None else []
        try:
            try:
                staged = await stage(folder)
            except BangerError as error:
                if error.code is not ErrorCode.NOT_FOUND:
                    raise
                return await self._nothing_there(record, workspace, disk=disk)
            notes = (*staged.notes, *_why_files(first))
            try:
                return await self._keep(
                    record, workspace, staged.repository, ignored=ignored, notes=notes, disk=disk
                )
            except BangerError as error:
                if error.code is ErrorCode.NO_SPACE:
                    raise
                tried.append(error)
            alone = await staged.repository.afresh()
            why = _reason(tried[-1])
            notes = (*notes, f"The history cannot be kept, only the files are: {why}.")
            return await self._keep(
                record, workspace, alone, ignored=ignored, notes=notes, disk=disk, files_only=why
            )
        except BangerError as error:
            raise _not_kept(record, [*tried, error]) from error
        finally:
            await in_thread(partial(shutil.rmtree, folder, ignore_errors=True))

    async def _keep(
        self,
        record: VMRecord,
        workspace: Workspace,
        repository: Repository,
        *,
        ignored: bool,
        notes: tuple[str, ...] = (),
        disk: str = "",
        files_only: str = "",
    ) -> Work:
        folder = self._folder(record.id)
        store = WorkStore(folder)
        brought = await in_thread(partial(_brought, folder, workspace))
        try:
            snapshot = await take(repository, brought, made=await store.made(), ignored=ignored)
            try:
                if store.exists or any(part.tips for part in snapshot.parts):
                    await in_thread(partial(mark_moving, folder))
                await store.receive(snapshot.parts)
            finally:
                await snapshot.aclose()
        except OSError as error:
            raise WorkNotKept(f"on the host: {error.strerror}", details=repr(error)) from error
        return await self._write(
            record,
            workspace,
            snapshot,
            how=repository.how,
            notes=(*notes, *snapshot.notes),
            disk=disk,
            ignored=ignored,
            files_only=files_only,
        )

    async def _nothing_there(self, record: VMRecord, workspace: Workspace, *, disk: str) -> Work:
        """The guest has removed the whole folder: what was kept before stays as it is."""
        folder = self._folder(record.id)
        before = await in_thread(partial(read_work, folder))
        work = before.work if before else Work(vm_id=record.id, vm_name=record.name, workspace=workspace)
        work = structs.replace(
            work,
            kept_at=now(),
            how="disk" if disk else "guest-files",
            changes=WorkChanges(),
            notes=(f"{workspace.guest_path} is gone in the guest: what was kept before is here.",),
            files_only="",
        )
        kept = WorkRecord(work=work, tree=before.tree if before else "", disk=_stamp(disk))
        await in_thread(partial(write_work, folder, kept))
        return work

    async def _write(
        self,
        record: VMRecord,
        workspace: Workspace,
        snapshot: Snapshot,
        *,
        how: str,
        notes: tuple[str, ...],
        disk: str,
        ignored: bool,
        files_only: str,
    ) -> Work:
        store = WorkStore(self._folder(record.id))
        refs = await store.kept()
        work = Work(
            vm_id=record.id,
            vm_name=record.name,
            workspace=workspace,
            kept_at=now(),
            how=how,
            changed=bool(refs),
            head=snapshot.head,
            branch=snapshot.branch,
            changes=snapshot.changes,
            refs=refs,
            cut=store.cut(),
            notes=tuple(_printable(note) for note in list(dict.fromkeys(notes))[:_MAX_NOTES]),
            files_only=_printable(files_only),
        )
        kept = WorkRecord(work=work, tree=snapshot.tree, disk=_stamp(disk), ignored=ignored)
        await in_thread(partial(write_work, self._folder(record.id), kept))
        return work

    async def _say_again(self, vm_id: str) -> None:
        """work.json after a crash between the refs and it: the refs are right."""
        folder = self._folder(vm_id)
        before, brought = read_work(folder), read_brought(folder)
        store = WorkStore(folder)
        refs = await store.kept()
        if before is not None:
            work = before.work
        elif brought is not None:
            work = Work(vm_id=vm_id, vm_name=brought.vm_name, workspace=brought.workspace)
        else:
            return
        if brought is not None:
            work = structs.replace(work, workspace=brought.workspace)
        current = {ref.name: ref.commit for ref in refs if not ref.name.startswith(OLD)}
        tree = await store.tree_of(current.get("worktree", current.get("index", current.get("HEAD", ""))))
        work = structs.replace(work, changed=bool(refs), refs=refs, cut=store.cut())
        tree = tree or (before.tree if before else "")
        await in_thread(partial(write_work, folder, WorkRecord(work=work, tree=tree)))

    def _sweep(self) -> None:
        os.makedirs(self._work_dir, mode=0o700, exist_ok=True)
        for name in os.listdir(self._work_dir):
            if name.startswith(_STAGING):
                shutil.rmtree(f"{self._work_dir}/{name}", ignore_errors=True)
        for vm_id in self._ids():
            sweep(self._folder(vm_id))

    def _ids(self) -> Sequence[str]:
        try:
            return sorted(name for name in os.listdir(self._work_dir) if _VM_ID.match(name))
        except FileNotFoundError:
            return []

    def _folder(self, vm_id: str) -> str:
        if not _VM_ID.match(vm_id):
            raise BangerError(ErrorCode.INVALID_ARGUMENT, "that is no VM's id")
        return f"{self._work_dir}/{vm_id}"

    def _lock(self, vm_id: str) -> asyncio.Lock:
        return self._locks.setdefault(vm_id, asyncio.Lock())

    def _workspace(self, record: VMRecord) -> Workspace:
        if record.workspace is None:
            raise BangerError(
                ErrorCode.WRONG_STATE,
                f"{record.name} has no workspace",
                hint=f"banger vm workspace prepare {record.name} PATH brings a repository into it",
            )
        return record.workspace


def _brought(folder: str, workspace: Workspace) -> Brought:
    record = read_brought(folder)
    refs = dict(record.refs) if record is not None else {}
    if not refs and workspace.base_commit:
        refs = {"HEAD": workspace.base_commit}
        if workspace.branch_name:
            refs[f"heads/{workspace.branch_name}"] = workspace.base_commit
    return Brought(
        base_commit=workspace.base_commit,
        brought_commit=workspace.brought_commit,
        metadata_only=workspace.mode == "metadata_only",
        refs=refs,
    )


def _stamp(disk: str) -> tuple[int, int, int] | None:
    """What changes when a work disk is written."""
    if not disk:
        return None
    try:
        there = os.stat(disk)
    except OSError:
        return None
    return there.st_mtime_ns, there.st_size, there.st_ino


def _age(work: Work) -> tuple[str, str]:
    moments = [moment for moment in (work.kept_at, work.workspace.prepared_at) if moment is not None]
    return (max(moments).isoformat() if moments else "", work.vm_id)


def _reason(error: BangerError) -> str:
    return error.reason if isinstance(error, WorkNotKept) else error.brief


def _not_kept(record: VMRecord, tried: list[BangerError]) -> WorkNotKept:
    details = [f"{error.brief}\n{error.details}" if error.details else error.brief for error in tried]
    return WorkNotKept(_reason(tried[-1]), vm_name=record.name, details="\n".join(details))


def _printable(note: str) -> str:
    return note.encode("utf-8", "backslashreplace").decode()


def _why_files(error: BangerError | None) -> tuple[str, ...]:
    if error is None or isinstance(error, GitMissing):
        return ()
    return (f"The guest's own git does not do ({_reason(error)}): its files were copied.",)


def _log_fallback(record: VMRecord, error: BangerError) -> None:
    if isinstance(error, GitMissing):
        log.debug("%s has no git: its files are copied", record.name)
    else:
        why = ": ".join(filter(None, (error.brief, error.details)))
        log.info("git in %s does not do, its files are copied: %s", record.name, why)
