"""The lifecycle's steps: what one is, and how a list of them is done and undone.

A step is named, says what it does, does it, and can undo what it did from the records alone. A start
does the list in order (a tuple of steps runs at the same time); a teardown undoes the same list backwards,
never stopping at an error. Progress, timing in the log, crash points and failure messages come from here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from banger.model.progress import Progress, ProgressEvent

log = logging.getLogger(__name__)

StartT = TypeVar("StartT", contravariant=True)
DownT = TypeVar("DownT", contravariant=True)

CrashPoint = Callable[[str], None]
"""Called with "do:<id>:before", "do:<id>:after", "undo:…", "<act>:…", "fix:<fix>:…": where a test kills
the daemon, or raises what the step could."""


class Act(StrEnum):
    """What an operation changes outside the list of steps, as <operation>:<part>; crash points as well."""

    CREATE_RESERVE = "create:reserve"
    SET_SAVE = "set:save"
    PUBLISH_SAVE = "publish:save"
    UNPUBLISH_SAVE = "unpublish:save"
    DELETE_FOLDER = "delete:folder"
    DELETE_ROW = "delete:row"
    WORKSPACE_SAVE = "workspace:save"
    KEEP_LIVE = "keep:live"
    KEEP_DISK = "keep:disk"
    DELETE_WORK = "delete:work"


def no_crash(_point: str) -> None:
    """Outside the crash tests."""


class Step(Protocol[StartT, DownT]):
    @property
    def id(self) -> str:
        """Stable, on the wire: `root_disk`."""
        ...

    @property
    def message(self) -> str:
        """What it does, for the progress line: `preparing the root disk`."""
        ...

    async def do(self, start: StartT) -> None: ...

    async def undo(self, down: DownT) -> None:
        """Remove what do() makes, whether or not it is there. Idempotent; raises when something stays."""
        ...


class StepError(Exception):
    """Internal: which step raised. The service turns it into vm.errors.StepFailed."""

    def __init__(self, step: str, cause: BaseException) -> None:
        super().__init__(f"{step}: {cause}")
        self.step = step
        self.cause = cause


class StepList(Generic[StartT, DownT]):
    """Steps in order; each entry is one step or a tuple of steps that run at the same time."""

    def __init__(
        self,
        entries: Sequence[Step[StartT, DownT] | tuple[Step[StartT, DownT], ...]],
        *,
        crash_point: CrashPoint = no_crash,
    ) -> None:
        self._groups = [entry if isinstance(entry, tuple) else (entry,) for entry in entries]
        self._crash_point = crash_point

    def ids(self) -> list[str]:
        return [step.id for group in self._groups for step in group]

    async def do(self, start: StartT, *, progress: Progress) -> None:
        """Raises StepError of the first step that failed, or CancelledError."""
        for group in self._groups:
            if len(group) == 1:
                await self._do_one(group[0], start, progress=progress)
                continue
            try:
                async with asyncio.TaskGroup() as tasks:
                    for step in group:
                        tasks.create_task(self._do_one(step, start, progress=progress))
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None

    async def _do_one(self, step: Step[StartT, DownT], start: StartT, *, progress: Progress) -> None:
        progress(ProgressEvent(step=step.id, message=step.message))
        began = time.monotonic()
        try:
            self._crash_point(f"do:{step.id}:before")
            await step.do(start)
            self._crash_point(f"do:{step.id}:after")
        except StepError:
            raise
        except Exception as error:
            log.warning("step %s failed after %.1f ms: %s", step.id, _ms(began), error)
            raise StepError(step.id, error) from error
        log.info("step %s took %.1f ms", step.id, _ms(began))

    async def undo(self, down: DownT) -> list[tuple[str, BaseException]]:
        """Every step's undo, last first. Returns what failed; raises only CancelledError."""
        failures: list[tuple[str, BaseException]] = []
        for step in self._reversed():
            began = time.monotonic()
            try:
                self._crash_point(f"undo:{step.id}:before")
                await step.undo(down)
                self._crash_point(f"undo:{step.id}:after")
            except Exception as error:
                log.warning("undo of %s failed after %.1f ms: %s", step.id, _ms(began), error)
                failures.append((step.id, error))
            else:
                log.debug("undo of %s took %.1f ms", step.id, _ms(began))
        return failures

    def _reversed(self) -> Iterable[Step[StartT, DownT]]:
        for group in reversed(self._groups):
            yield from reversed(group)


def _ms(began: float) -> float:
    return (time.monotonic() - began) * 1000
