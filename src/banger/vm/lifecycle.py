"""Start, stop and kill of one VM whose lock is held (SPEC §2). VMService decides who may; this does it.

There is one list of steps. A start does it, everything that ends a VM undoes it. What a crash of the
daemon leaves in the middle is finished by the same undo, called from reconcile.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from banger.errors import BangerError, ErrorCode
from banger.guest.agent import AgentClient
from banger.guest.ready import ReadyListener
from banger.model.progress import Progress, ProgressEvent
from banger.model.states import CLAIMS_LIFE, VMState
from banger.vm.errors import CleanupFailed, StepFailed, describe_cause
from banger.vm.live import LiveMachines
from banger.vm.liveness import vm_alive
from banger.vm.locks import finish
from banger.vm.machine import MACHINE_STEPS
from banger.vm.progresswatch import ProgressWatch
from banger.vm.services import Services
from banger.vm.start import BEFORE_DISK, HOST_STEPS, Start, Teardown
from banger.vm.steps import CrashPoint, StepError, StepList, no_crash
from banger.vm.subject import Subject
from banger.vmm.protocol import CONSOLE_LOG, MONITOR_ROLE, Machine

log = logging.getLogger(__name__)


class Lifecycle:
    def __init__(self, services: Services, live: LiveMachines, *, crash_point: CrashPoint = no_crash) -> None:
        self.services = services
        self.live = live
        self._cleanup_s = services.deadlines.cleanup_s
        self._before_disk = StepList(BEFORE_DISK, crash_point=crash_point)
        self._machine = StepList((*HOST_STEPS, *MACHINE_STEPS), crash_point=crash_point)
        self._all = StepList((*BEFORE_DISK, *HOST_STEPS, *MACHINE_STEPS), crash_point=crash_point)

    def step_ids(self) -> list[str]:
        return self._all.ids()

    def alive(self, subject: Subject) -> bool:
        return vm_alive(subject.record, subject.handles, boot_id=self.services.boot_id)

    async def start(self, subject: Subject, progress: Progress) -> None:
        """To `running`; an alive VM is left as it is. Raises StepFailed or, cleaned up,
        CancelledError."""
        if self.alive(subject):
            return
        before = subject.record.state
        if not subject.handles.is_empty() or before in CLAIMS_LIFE:  # or an operation that could not end
            await self._clean_leftovers(subject, progress)
            before = subject.record.state
        began = time.monotonic()
        start = Start(subject, services=self.services, ready=ReadyListener(subject.vm_dir))
        try:
            await self._before_disk.do(start, progress=progress)
        except BaseException as error:
            await finish(self._put_back(subject, before), deadline_s=self._cleanup_s)
            raise self._failure(subject, "start", error=error, cleanup=[]) from error
        try:
            await self._machine.do(start, progress=progress)
            await subject.set_state(VMState.RUNNING, last_error="", touch=True)
        except BaseException as error:
            cleanup = await finish(self._abandon(start, error), deadline_s=2 * self._cleanup_s)
            raise self._failure(subject, "start", error=error, cleanup=cleanup) from error
        self.live.add(subject.id, start.need_machine(), start.ready)
        log.info("%s: running after %.0f ms", subject.name, (time.monotonic() - began) * 1000)
        for capability in self.services.capabilities:
            for warning in capability.warnings(subject.record):
                progress(ProgressEvent(step="warning", message=warning, warning=True))

    async def stop(self, subject: Subject, progress: Progress) -> None:
        """Gracefully to `stopped`. A VM that is not alive: what is left is cleaned, no error."""
        if self.alive(subject):
            await subject.set_state(VMState.STOPPING)
            live = self.live.get(subject.id)
            machine = live.machine if live else None
            try:
                await self._ask_guest(subject, machine, progress=progress)
            except Exception as error:
                why = describe_cause(error)
                log.warning("%s: graceful stop failed: %s; killing", subject.name, why)
                progress(ProgressEvent(step="kill", message=f"{why}; killing"))
            except asyncio.CancelledError:
                # the guest may be going already; its end is seen by the watcher
                await finish(subject.set_state(VMState.RUNNING), deadline_s=self._cleanup_s)
                raise
        await self.tear_down(subject, VMState.STOPPED, last_error="")

    async def kill(self, subject: Subject, signum: int, *, progress: Progress) -> None:
        """Signal the monitor, wait, tear down, `stopped`."""
        monitor = subject.handles.process(MONITOR_ROLE)
        if monitor is not None and subject.handles.boot_id == self.services.boot_id:
            progress(ProgressEvent(step="kill", message=f"sending {signal.Signals(signum).name}"))
            helper, kill_s = self.services.helper, self.services.deadlines.kill_s
            if await helper.signal(monitor, signum) and not await helper.wait_gone(monitor, timeout_s=kill_s):
                log.warning("%s: still there %.0f s after signal %d", subject.name, kill_s, signum)
        await self.tear_down(subject, VMState.STOPPED, last_error="")

    async def tear_down(
        self, subject: Subject, target: VMState, *, last_error: str | None, durable: bool = True
    ) -> None:
        """Undo everything; target state, handles and mirror cleared. Raises CleanupFailed (state error).

        durable False: for who writes the row once more, or removes it.
        """
        await self.live.forget(subject.id)
        failures = await finish(self._undo(subject), deadline_s=2 * self._cleanup_s)
        if failures:
            error = CleanupFailed(subject.name, failures, log_path=self.services.paths.daemon_log)
            await subject.set_state(VMState.ERROR, last_error=error.brief)
            raise error
        await subject.clear_handles()
        await subject.set_state(target, last_error=last_error, durable=durable)

    async def _undo(self, subject: Subject) -> list[tuple[str, BaseException]]:
        """Every step's undo, within cleanup's own deadline, which is one more thing that can fail."""
        failures: list[tuple[str, BaseException]] = []
        try:
            async with asyncio.timeout(self._cleanup_s):
                failures = await self._all.undo(Teardown(subject, services=self.services))
        except TimeoutError:
            failures.append(("cleanup", TimeoutError(f"not done after {self._cleanup_s:g} s")))
        return failures

    async def _clean_leftovers(self, subject: Subject, progress: Progress) -> None:
        progress(ProgressEvent(step="clean", message="cleaning up after an earlier run"))
        target = VMState.STOPPED if subject.record.state in (*CLAIMS_LIFE, VMState.STOPPED) else VMState.ERROR
        await self.tear_down(subject, target, last_error=None)

    async def _put_back(self, subject: Subject, before: VMState) -> None:
        if subject.record.state is VMState.STARTING:
            target = (
                before if before in (VMState.CREATED, VMState.STOPPED, VMState.ERROR) else VMState.STOPPED
            )
            await subject.set_state(target)

    async def _abandon(self, start: Start, error: BaseException) -> list[BaseException]:
        """Tear down a start that failed after step 8; the state says error, and why."""
        subject = start.subject
        cause = error.cause if isinstance(error, StepError) else error
        why = "start was cancelled" if isinstance(cause, asyncio.CancelledError) else describe_cause(cause)
        failures: list[tuple[str, BaseException]] = []
        closing = [("ready", start.ready.aclose)]
        if start.machine is not None:
            closing.insert(0, ("machine", start.machine.close))
        for what, close in closing:
            try:
                await close()
            except Exception as problem:
                failures.append((what, problem))
        failures += await self._undo(subject)
        if failures:
            why = f"{why}; {CleanupFailed(subject.name, failures).brief}"
        else:
            await subject.clear_handles()
        cancelled = isinstance(cause, asyncio.CancelledError) and not failures
        target = VMState.STOPPED if cancelled else VMState.ERROR
        await subject.set_state(target, last_error=why)
        return [failure for _, failure in failures]

    def _failure(
        self, subject: Subject, operation: str, *, error: BaseException, cleanup: list[BaseException]
    ) -> BaseException:
        if not isinstance(error, StepError):
            return error
        return StepFailed(
            f"{operation} {subject.name}",
            error.step,
            cause=error.cause,
            cleanup=cleanup,
            log_path=self.services.paths.daemon_log,
        )

    async def _ask_guest(self, subject: Subject, machine: Machine | None, *, progress: Progress) -> None:
        """Through the image's own init, else the key or button; returns when the monitor has gone."""
        monitor = subject.handles.process(MONITOR_ROLE)
        if monitor is None:
            return
        limits = self.services.deadlines
        progress(ProgressEvent(step="shutdown", message="asking the guest to shut down"))
        try:
            async with asyncio.timeout(limits.agent_answer_s):
                agent = await AgentClient.connect(subject.vm_dir)
                try:
                    await agent.shutdown("poweroff")
                finally:
                    await agent.aclose()
        except (TimeoutError, BangerError, OSError) as error:
            log.info("%s: agent did not take the shutdown: %s", subject.name, describe_cause(error))
            if machine is None:
                raise BangerError(ErrorCode.GUEST_UNREACHABLE, "the guest does not answer") from error
            progress(ProgressEvent(step="button", message="pressing the power button"))
            await machine.ctrl_alt_del()
        watch = ProgressWatch(
            monitor,
            f"{subject.vm_dir}/{CONSOLE_LOG}",
            silence_s=limits.stop_silence_s,
            cpu_s=limits.stop_at_most_s,
            at_most_s=limits.stop_at_most_s,
        )
        progress(ProgressEvent(step="wait", message="waiting for the guest to end"))
        while not await self.services.helper.wait_gone(monitor, timeout_s=1.0):
            if why := watch.overdue():
                raise BangerError(ErrorCode.TIMEOUT, f"the guest did not end: {why}")
