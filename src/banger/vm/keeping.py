"""When the work in a VM's workspace is kept: before a stop, before a removal, in the rounds (SPEC §6).

VMService's hands, called under the VM's lock; what keeping is, workspace/ knows. A VM without a workspace
pays nothing. Of a guest that runs the guest is asked; of one that does not, its work disk is read, and that
only once no machine can write it. A keep that fails never costs the disk: a stop goes on and warns, a
removal fails, also where the files could be kept and the history not. After a crash in the middle the store
is as it was, and the same command keeps again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Protocol

from banger.errors import BangerError
from banger.guest.agent import AgentClient
from banger.guest.errors import GuestTimeout
from banger.model.deadlines import Deadlines
from banger.model.ids import is_vm_id
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.model.records import VMRecord, Workspace
from banger.model.work import Work
from banger.system.process import read_pid_file
from banger.vm.errors import KeepFailed, NoWorkspace, describe_cause
from banger.vm.planner import Finding, Fix
from banger.vm.progresswatch import ProgressWatch
from banger.vm.steps import Act, CrashPoint, no_crash
from banger.vmm.protocol import CONSOLE_LOG, MONITOR_ROLE
from banger.workspace.errors import WorkNotKept

log = logging.getLogger(__name__)

STAGING = "staging-"
"""How names in the folder of kept work begin that are no VM's (workspace/service)."""
KEPT_STEP = "work_kept"
"""Of the line that says how to get what was kept; the CLI lets it stay."""
_DISCARD = "banger vm delete --discard-work"


class Workspaces(Protocol):
    """The part of workspace.service.WorkspaceService that the lifecycle uses."""

    async def bring(self, record: VMRecord, workspace: Workspace, *, refs: Mapping[str, str]) -> None: ...

    async def keep_live(
        self, record: VMRecord, *, ignored: bool = False, progress: Progress = no_progress
    ) -> Work: ...

    async def keep_disk(
        self, record: VMRecord, *, ignored: bool = False, progress: Progress = no_progress
    ) -> Work: ...

    def list(self) -> Sequence[Work]: ...

    async def vm_gone(self, vm_id: str) -> Work | None: ...

    async def forget(self, vm_id: str) -> None: ...


class Keeping:
    def __init__(
        self,
        workspaces: Workspaces,
        deadlines: Deadlines,
        *,
        work_dir: str,
        crash_point: CrashPoint = no_crash,
    ) -> None:
        self._workspaces = workspaces
        self._work_dir = work_dir
        self._deadlines = deadlines
        self._crash_point = crash_point
        self._seen: dict[str, int] = {}
        """By VM: st_mtime_ns of its work disk as the last keep of it that worked began."""

    async def sweep(self, vm_ids: set[str]) -> None:
        """At the daemon's start: stores of VMs that went, with nothing in them, as a crash left them."""
        for work in self._workspaces.list():
            if work.vm_id not in vm_ids and not work.changed:
                await self._gone(work.vm_id, work.vm_name)

    def findings(self, *, busy: bool) -> Sequence[Finding]:
        """What lies in the folder of kept work and is none. A keep has files there while it holds its VM."""
        found = []
        for name in _names(self._work_dir):
            path = f"{self._work_dir}/{name}"
            if name.startswith(STAGING):
                if not busy:
                    problem = "what a keep of a VM's work left behind"
                    found.append(Finding(kind="folder", name=path, problem=problem, fix=Fix.REMOVE_FOLDER))
            elif not is_vm_id(name):
                found.append(Finding(kind="file", name=path, problem="lies among kept work, and is none"))
        return found

    async def bring(self, record: VMRecord, workspace: Workspace, refs: Mapping[str, str]) -> None:
        self._seen.pop(record.id, None)
        await self._workspaces.bring(record, workspace, refs=refs)

    async def live(self, record: VMRecord, progress: Progress, *, ignored: bool = False) -> Work:
        """Of a guest that runs. Raises KeepFailed."""
        seen = written_ns(record)

        async def ask() -> Work:
            await guest_answers(record.runtime.vm_dir, self._deadlines.keep_answer_s)
            return await self._workspaces.keep_live(record, ignored=ignored, progress=progress)

        work = await self._keep(
            record,
            ask,
            progress,
            act=Act.KEEP_LIVE,
            watch=self._watch(record.runtime.vm_dir),
        )
        self._seen[record.id] = seen
        return work

    async def disk(self, record: VMRecord, progress: Progress, *, ignored: bool = False) -> Work:
        """From the work disk, which no machine may have. Raises KeepFailed."""
        return await self._keep(
            record,
            lambda: self._workspaces.keep_disk(record, ignored=ignored, progress=progress),
            progress,
            act=Act.KEEP_DISK,
            watch=self._watch(),
        )

    def is_due(self, record: VMRecord) -> bool:
        """For the rounds: its work disk was written since the last keep of the running guest."""
        written = written_ns(record)
        return written != 0 and self._seen.get(record.id) != written

    async def before_stop(self, record: VMRecord, progress: Progress) -> bool:
        """Of a guest that runs. False: after_stop has to."""
        if record.workspace is None:
            return True
        try:
            work = await self.live(record, progress)
        except KeepFailed as error:
            log.warning("%s; its disk is read once it has stopped", error.brief)
            return False
        say_kept(work, progress)
        return True

    async def after_stop(self, record: VMRecord, progress: Progress) -> None:
        """What before_stop could not. When this cannot either: the disk is still there, and a warning."""
        try:
            work = await self.disk(record, progress)
        except KeepFailed as error:
            log.warning("%s", error.brief)
            message = f"{error.brief}; it is on the VM's disk still"
            progress(ProgressEvent(step="warning", message=message, warning=True))
            return
        say_kept(work, progress)

    async def before_removal(
        self, record: VMRecord, progress: Progress, *, alive: bool, end: Callable[[], Awaitable[object]]
    ) -> None:
        """Raises KeepFailed: the removal is off. end: makes sure that no machine has the disks any more;
        called when the guest could not be asked, or when it is not alive."""
        if record.workspace is None:
            return
        failures: list[KeepFailed] = []
        if alive:
            try:
                work = await self.live(record, progress)
            except KeepFailed as error:
                log.warning("%s; ending it to read its disk", error.brief)
                failures.append(error)
            else:
                _demand_history(work)
                return
            await self._sync(record)
        await end()
        if not os.path.lexists(record.runtime.work_disk_path):
            return  # never made, or gone in an earlier removal, which had kept what was on it
        try:
            work = await self.disk(record, progress)
        except KeepFailed as error:
            hint = f"to lose it with the VM: {_DISCARD} {record.name}"
            raise KeepFailed(record.name, causes=[*failures, error], hint=hint) from error
        _demand_history(work)

    async def after_removal(self, record: VMRecord, progress: Progress, *, discard: bool) -> None:
        """The VM has gone: its store goes with it when nothing is new in it, or when it is discarded.
        Nothing of a VM is lost when that fails, so it is a warning."""
        if record.workspace is None:
            return
        self._seen.pop(record.id, None)
        work = await self._gone(record.id, record.name, progress=progress, discard=discard)
        if work is not None:
            say_kept(work, progress)

    async def _gone(
        self, vm_id: str, name: str, *, progress: Progress | None = None, discard: bool = False
    ) -> Work | None:
        try:
            self._crash_point(f"{Act.DELETE_WORK}:before")
            work = None
            if discard:
                await self._workspaces.forget(vm_id)
            else:
                work = await self._workspaces.vm_gone(vm_id)
            self._crash_point(f"{Act.DELETE_WORK}:after")
            return work
        except (BangerError, OSError) as error:
            message = f"what was kept of {name} could not be looked after: {describe_cause(error)}"
            log.warning("%s", message)
            if progress is not None:
                progress(ProgressEvent(step="warning", message=message, warning=True))
            return None

    async def _keep(
        self,
        record: VMRecord,
        work: Callable[[], Coroutine[object, object, Work]],
        progress: Progress,
        *,
        act: Act,
        watch: ProgressWatch,
    ) -> Work:
        if record.workspace is None:
            raise NoWorkspace(record.name)
        progress(ProgressEvent(step="keep", message=f"keeping the work in {record.name}"))
        began = time.monotonic()
        try:
            self._crash_point(f"{act}:before")
            kept = await self._watched(work(), watch)
            self._crash_point(f"{act}:after")
        except Exception as error:
            if not isinstance(error, (BangerError, OSError)):
                log.exception("keeping the work in %s", record.name)
            raise KeepFailed(record.name, causes=[error]) from error
        took_ms = (time.monotonic() - began) * 1000
        log.info("%s: work kept (%s) in %.0f ms", record.name, kept.how, took_ms)
        for note in kept.notes:
            log.info("%s: %s", record.name, note)
        return kept

    def _watch(self, vm_dir: str = "") -> ProgressWatch:
        """vm_dir: of a guest that runs, which has to show life; "" where the host alone works."""
        limits = self._deadlines
        return ProgressWatch(
            read_pid_file(f"{vm_dir}/{MONITOR_ROLE}.pid", role=MONITOR_ROLE) if vm_dir else None,
            f"{vm_dir}/{CONSOLE_LOG}",
            silence_s=limits.keep_silence_s if vm_dir else math.inf,
            cpu_s=limits.keep_at_most_s,
            at_most_s=limits.keep_at_most_s,
        )

    async def _watched(self, work: Coroutine[object, object, Work], watch: ProgressWatch) -> Work:
        """Raises TimeoutError once the watch has no hope, and what work raises."""
        task = asyncio.create_task(work, name="keep work")
        try:
            while not (await asyncio.wait([task], timeout=self._deadlines.keep_look_s))[0]:
                if why := watch.overdue():
                    raise TimeoutError(why)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _sync(self, record: VMRecord) -> None:
        """What the guest has written reaches its disk, if it does that within the agent's time."""
        limit_s = self._deadlines.agent_answer_s
        try:
            async with asyncio.timeout(limit_s):
                async with AgentClient(record.runtime.vm_dir, timeout_s=limit_s) as agent:
                    await agent.sync(timeout_s=limit_s)
        except (TimeoutError, BangerError, OSError) as error:
            log.info("%s: the guest did not sync: %s", record.name, describe_cause(error))


async def guest_answers(vm_dir: str, limit_s: float) -> None:
    """Raises a BangerError where its agent does not."""
    try:
        async with asyncio.timeout(limit_s):
            async with AgentClient(vm_dir, timeout_s=limit_s) as agent:
                await agent.health()
    except TimeoutError as error:
        raise GuestTimeout("say how it is", limit_s) from error


def _demand_history(work: Work) -> None:
    """Raises KeepFailed where only the files are kept: the disk has the history still."""
    if work.files_only:
        name = work.vm_name
        cause = WorkNotKept(f"only its files, not its history: {work.files_only}")
        hint = f"banger workspace pull {name} brings the files; then, to lose the rest: {_DISCARD} {name}"
        raise KeepFailed(name, causes=[cause], hint=hint)


def say_kept(work: Work, progress: Progress) -> None:
    """How to get it, where something is in it."""
    if work.changed:
        name = work.vm_name
        message = f"work of {name} is kept: banger workspace pull {name}"
        progress(ProgressEvent(step=KEPT_STEP, message=message))


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def written_ns(record: VMRecord) -> int:
    """When the work disk's file was last written; 0 where there is none."""
    try:
        return os.stat(record.runtime.work_disk_path).st_mtime_ns
    except OSError:
        return 0
