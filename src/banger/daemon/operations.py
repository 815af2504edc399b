"""Long pieces of work: started by a request, run in a group the daemon owns, watched by any client.

Owns every running operation's task and the events of the last finished ones. A client that goes away
cancels nothing; only cancel() and close() do. Nothing here is durable: after a crash of the daemon the
operations are gone, and reconcile (vm/) puts their VMs right.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from types import TracebackType

import msgspec

from banger.api.errors import ErrorBody
from banger.api.replies import EventKind, OperationEvent, OperationReply, OperationStatus
from banger.daemon.failures import failure_body
from banger.daemon.journal import current_operation
from banger.errors import BangerError, ErrorCode
from banger.model.ids import OperationId
from banger.model.progress import Progress, ProgressEvent
from banger.model.records import now

log = logging.getLogger(__name__)

MAX_EVENTS = 1000
"""Kept per operation; a client that reconnects later than that misses the oldest, never the end."""
MAX_FINISHED = 200
"""Finished operations kept for late readers."""
HEARTBEAT_S = 5.0
CLOSE_TIMEOUT_S = 40.0
"""For cancelled operations to clean up: SPEC's 30 s for a teardown, and some."""

Work = Callable[[Progress], Awaitable[dict[str, object]]]
"""What an operation does; its answer is the operation's result, JSON-able."""


class Operation:
    """One piece of work and what it has said so far."""

    def __init__(self, op_id: OperationId, kind: str, *, vm_id: str = "", auto_remove: bool = False) -> None:
        self.id = op_id
        self.kind = kind
        self.vm_id = vm_id
        self.auto_remove = auto_remove
        self.status = OperationStatus.RUNNING
        self.created_at: datetime = now()
        self.updated_at: datetime = self.created_at
        self.result: dict[str, object] | None = None
        self.error: ErrorBody | None = None
        self.watchers = 0
        self._events: deque[OperationEvent] = deque(maxlen=MAX_EVENTS)
        self._seq = 0
        self._last_step = ""
        self._news = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self.status is OperationStatus.RUNNING

    def reply(self) -> OperationReply:
        return OperationReply(
            id=self.id,
            kind=self.kind,
            status=self.status,
            url=f"/v1/operations/{self.id}",
            created_at=self.created_at,
            updated_at=self.updated_at,
            vm_id=self.vm_id,
            result=self.result,
            error=self.error,
        )

    def progress(self, event: ProgressEvent) -> None:
        """The Progress that the work is given."""
        if event.vm_id:
            self.vm_id = event.vm_id
        if event.warning or event.step == "warning":
            kind = EventKind.WARNING
        else:
            kind = EventKind.PROGRESS if event.step == self._last_step else EventKind.STEP
            self._last_step = event.step
        self._publish(
            kind,
            step=event.step,
            message=event.message,
            current=event.current,
            total=event.total,
        )

    def finish(
        self, status: OperationStatus, result: dict[str, object] | None, *, error: ErrorBody | None
    ) -> None:
        self.status, self.result, self.error = status, result, error
        self._publish(EventKind.ERROR if error else EventKind.RESULT, result=result, error=error)

    def _publish(
        self,
        kind: EventKind,
        *,
        step: str = "",
        message: str = "",
        current: int | None = None,
        total: int | None = None,
        result: dict[str, object] | None = None,
        error: ErrorBody | None = None,
    ) -> None:
        self._seq += 1
        self.updated_at = now()
        event = OperationEvent(
            seq=self._seq,
            time=self.updated_at,
            op_id=self.id,
            kind=kind,
            step=step,
            message=message,
            current=current,
            total=total,
            vm_id=self.vm_id,
            result=result,
            error=error,
        )
        self._events.append(event)
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def events(
        self, after: int, heartbeat_s: float = HEARTBEAT_S
    ) -> AsyncGenerator[OperationEvent, None]:
        """Everything with a number above `after`, then what comes; ends after the result or the error."""
        self.watchers += 1
        try:
            while True:
                news = self._news
                for event in [event for event in self._events if event.seq > after]:
                    after = event.seq
                    yield event
                if after >= self._seq:
                    if not self.running:
                        return
                    try:
                        async with asyncio.timeout(heartbeat_s):
                            await news.wait()
                    except TimeoutError:
                        yield OperationEvent(
                            seq=self._seq,
                            time=now(),
                            op_id=self.id,
                            kind=EventKind.HEARTBEAT,
                            vm_id=self.vm_id,
                        )
        finally:
            self.watchers -= 1


class Operations:
    """The registry. An async context manager: leaving it cancels what runs and waits for its cleanup."""

    def __init__(self) -> None:
        self._all: dict[str, Operation] = {}
        self._group = asyncio.TaskGroup()
        self._closing = False

    async def __aenter__(self) -> Operations:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
        try:
            async with asyncio.timeout(1.0):
                await self._group.__aexit__(kind, error, trace)
        except TimeoutError:
            log.error("operations were left behind")

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Take nothing new, cancel what runs, and wait for its cleanup; what hangs is said in the log."""
        self._closing = True
        tasks = [operation.task for operation in self.running() if operation.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        if left := self.running():
            names = ", ".join(f"{operation.kind} {operation.id}" for operation in left)
            log.error("gave up waiting for operations that were cancelled: %s", names)

    def start(
        self, op_id: OperationId, kind: str, *, work: Work, vm_id: str = "", auto_remove: bool = False
    ) -> Operation:
        """Run `work` as an operation of this id (the id of the request that asked for it)."""
        if self._closing:
            raise BangerError(ErrorCode.BUSY, "the daemon is stopping", hint="try again")
        operation = Operation(op_id, kind, vm_id=vm_id, auto_remove=auto_remove)
        self._all[op_id] = operation
        operation.task = self._group.create_task(self._run(operation, work), name=f"{kind} {op_id}")
        return operation

    async def _run(self, operation: Operation, work: Work) -> None:
        current_operation.set(operation.id)
        log.info("operation %s began", operation.kind)
        status = OperationStatus.FAILED
        result: dict[str, object] | None = None
        error: ErrorBody | None = None
        try:
            result = await work(operation.progress)
            status = OperationStatus.SUCCEEDED
        except asyncio.CancelledError:
            # the work has cleaned up by now; the cancellation ends here, where the task ends
            status = OperationStatus.CANCELLED
            error = failure_body(
                BangerError(ErrorCode.ABORTED, f"{operation.kind} was cancelled"), op_id=operation.id
            )
        except BaseException as failure:
            error = failure_body(failure, op_id=operation.id)
            if not isinstance(failure, Exception):
                raise
        finally:
            operation.finish(status, result, error=error)
            log.info("operation %s: %s%s", operation.kind, status, f": {error.brief}" if error else "")
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        finished = [op for op in self._all.values() if not op.running]
        for operation in finished[: max(0, len(finished) - MAX_FINISHED)]:
            del self._all[operation.id]

    def get(self, op_id: str) -> Operation:
        operation = self._all.get(op_id)
        if operation is None:
            raise BangerError(
                ErrorCode.NOT_FOUND,
                f"no operation is called {op_id[:40]!a}",
                hint="finished operations are forgotten after a while, and when the daemon restarts",
            )
        return operation

    def list(self) -> tuple[Operation, ...]:
        return tuple(self._all.values())

    def running(self) -> tuple[Operation, ...]:
        return tuple(operation for operation in self._all.values() if operation.running)

    def cancel(self, op_id: str) -> Operation:
        operation = self.get(op_id)
        if operation.running and operation.task is not None:
            operation.task.cancel()
        return operation


def as_result(struct: msgspec.Struct) -> dict[str, object]:
    """A reply's Struct as the JSON object that an operation's result is."""
    value: dict[str, object] = msgspec.to_builtins(struct)
    return value
