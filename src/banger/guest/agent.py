"""AgentClient: what the host asks of a guest's agent. One connection per request, each with a deadline.

Used by vm/, workspace/ and the daemon. Holds at most one idle connection (the one that `connect` made);
nothing of it is left after a crash.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from banger.errors import BangerError, ErrorCode
from banger.guest import wire
from banger.guest.connection import FrameStream, Hello, open_connection
from banger.guest.errors import GuestTimeout, GuestUnreachable
from banger.guest.stream import ExecStream, refusal
from banger.guest.wire import Fields, WireError

DEFAULT_TIMEOUT_S = 5.0
EXEC_TIMEOUT_S = (
    90.0  # a command asked for before the root is mounted waits for that, in the agent up to 60 s
)


@dataclass(frozen=True, slots=True)
class Health:
    """A guest's health. phase: early, handoff, init or shutdown; init: path of its init, or "agent".
    work_*: 0 without a work disk; root_*: 0 before there is a root."""

    uptime_s: int
    phase: str
    init: str
    load1: float
    memory_total_kib: int
    memory_available_kib: int
    root_total_bytes: int
    root_free_bytes: int
    work_total_bytes: int
    work_free_bytes: int
    running_sessions: int = 0


def parse_health(payload: bytes) -> Health:
    """Raises WireError."""
    fields = Fields(payload)
    return Health(
        uptime_s=fields.number(wire.HEALTH_UPTIME_S),
        phase=fields.text(wire.HEALTH_PHASE, most=32),
        init=fields.text(wire.HEALTH_INIT, most=256),
        load1=fields.number(wire.HEALTH_LOAD1_X100) / 100,
        memory_total_kib=fields.number(wire.HEALTH_MEMORY_TOTAL_KIB),
        memory_available_kib=fields.number(wire.HEALTH_MEMORY_AVAILABLE_KIB),
        root_total_bytes=fields.number(wire.HEALTH_ROOT_TOTAL_BYTES),
        root_free_bytes=fields.number(wire.HEALTH_ROOT_FREE_BYTES),
        work_total_bytes=fields.number(wire.HEALTH_WORK_TOTAL_BYTES),
        work_free_bytes=fields.number(wire.HEALTH_WORK_FREE_BYTES),
        running_sessions=fields.number(wire.HEALTH_RUNNING_SESSIONS),
    )


class AgentClient:
    """The agent of the VM in vm_dir. Methods raise GuestUnreachable, GuestTimeout or AgentRefused."""

    def __init__(self, vm_dir: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._vm_dir = vm_dir
        self._timeout_s = timeout_s
        self._spare: FrameStream | None = None
        self.hello: Hello | None = None

    @classmethod
    async def connect(cls, vm_dir: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> AgentClient:
        """A client whose agent has answered; the connection is kept for the first request."""
        client = cls(vm_dir, timeout_s=timeout_s)
        client._spare = await client._open(timeout_s)
        return client

    async def __aenter__(self) -> AgentClient:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the idle connection. Streams of running commands are their callers'."""
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.aclose()

    async def health(self) -> Health:
        reply = await self._ask("say how it is", wire.encode_frame(wire.FRAME_HEALTH))
        try:
            return parse_health(reply)
        except WireError as error:
            raise GuestUnreachable("the guest's agent answers nonsense", details=str(error)) from error

    async def shutdown(self, kind: str = "poweroff") -> None:
        """Ask the image's own init. kind: poweroff or reboot. Returns when the agent has taken the wish."""
        payload = wire.encode_fields([(wire.SHUTDOWN_KIND, kind)])
        await self._ask("take the shutdown", wire.encode_frame(wire.FRAME_SHUTDOWN, payload))

    async def sync(self, *, timeout_s: float = 30.0) -> None:
        """sync(2) in the guest."""
        await self._ask("sync", wire.encode_frame(wire.FRAME_SYNC), timeout_s=timeout_s)

    async def set_time(self, nanoseconds: int | None = None) -> None:
        """Set the guest's clock, by default to the host's. Nanoseconds since the epoch."""
        payload = wire.encode_fields([(wire.TIME_NANOSECONDS, nanoseconds or time.time_ns())])
        await self._ask("set its clock", wire.encode_frame(wire.FRAME_TIME, payload))

    async def exec(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        cwd: str = "",
        user: str = "",
        terminal: bool = False,
        stdin: bool = False,
        rows: int = 0,
        cols: int = 0,
        timeout_s: float = EXEC_TIMEOUT_S,
    ) -> ExecStream:
        """Start a command; returns once it runs. timeout_s bounds the start, not the command."""
        try:
            request = wire.encode_exec(
                argv, env, cwd=cwd, user=user, terminal=terminal, stdin=stdin, rows=rows, cols=cols
            )
        except WireError as error:
            raise BangerError(ErrorCode.INVALID_ARGUMENT, str(error)) from error
        stream = await self._take(timeout_s)
        try:
            payload = await self._exchange(stream, request, wire.FRAME_STARTED, timeout_s=timeout_s)
            return ExecStream(stream, pid=Fields(payload).number(wire.STARTED_PID))
        except TimeoutError as error:
            await stream.aclose()
            raise GuestTimeout("start the command", timeout_s) from error
        except (OSError, WireError) as error:
            await stream.aclose()
            raise GuestUnreachable("the guest's agent went away", details=repr(error)) from error
        except BaseException:
            await stream.aclose()
            raise

    async def _ask(self, what: str, request: bytes, *, timeout_s: float | None = None) -> bytes:
        limit = self._timeout_s if timeout_s is None else timeout_s
        stream = await self._take(limit)
        try:
            return await self._exchange(stream, request, wire.FRAME_OK, timeout_s=limit)
        except TimeoutError as error:
            raise GuestTimeout(what, limit) from error
        except (OSError, WireError) as error:
            raise GuestUnreachable("the guest's agent went away", details=repr(error)) from error
        finally:
            await stream.aclose()

    async def _exchange(self, stream: FrameStream, request: bytes, wanted: int, *, timeout_s: float) -> bytes:
        async with asyncio.timeout(timeout_s):
            await stream.write(request)
            frame = await stream.read()
        if frame is not None and frame.type == wire.FRAME_ERROR:
            raise refusal(frame.payload)
        if frame is None or frame.type != wanted:
            raise WireError("the agent does not answer the request")
        return frame.payload

    async def _take(self, timeout_s: float) -> FrameStream:
        """The idle connection, if it still lives, else a new one."""
        spare, self._spare = self._spare, None
        if spare is not None:
            if not spare.reader.at_eof():
                return spare
            await spare.aclose()
        return await self._open(timeout_s)

    async def _open(self, timeout_s: float) -> FrameStream:
        stream, self.hello = await open_connection(self._vm_dir, timeout_s=timeout_s)
        return stream
