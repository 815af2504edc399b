"""GuestSessions: what the daemon asks the agent about long-lived commands. One connection a request.

Used by daemon/session_routes. The guest has the only truth about its sessions, and is hostile: how many
there are, how long a text is and which ids are answered is all checked here. Streams (attach, logs, send)
are the client's, straight at the agent. Nothing is left after a crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from banger.errors import BangerError, ErrorCode
from banger.guest import sessionwire, wire
from banger.guest.connection import FrameStream, open_connection
from banger.guest.errors import AgentRefused, GuestTimeout, GuestUnreachable
from banger.guest.stream import refusal
from banger.guest.wire import Fields, Frame, WireError
from banger.model.records import GuestSession
from banger.model.sessions import FEATURE, REFUSALS, tag_words

TIMEOUT_S = 10.0
START_TIMEOUT_S = 90.0
"""A session asked for before the root is mounted waits for that in the agent, up to 60 s."""
MAX_LAUNCH_LOG = 16 << 10
MAX_TIME_S = 1 << 36
"""Seconds since the epoch; past it no clock of a guest is right."""
STATUSES = frozenset({"starting", "running", "stopping", "exited", "failed"})
_Take = Callable[[Frame], bool]
"""Takes a frame of the answer; True when that was the last."""


class GuestSessions:
    """The sessions of the VM in vm_dir. Methods raise GuestUnreachable, GuestTimeout, or a BangerError with
    the code that model.sessions.REFUSALS has for the agent's; WRONG_STATE for an agent without sessions.
    """

    def __init__(self, vm_dir: str, *, vm_id: str, vm_name: str) -> None:
        self._vm_dir = vm_dir
        self._vm_id = vm_id
        self._vm_name = vm_name

    async def list(self, session_id: str = "", *, timeout_s: float = TIMEOUT_S) -> list[GuestSession]:
        """All of them, oldest first; with an id that one, or none."""
        request = sessionwire.encode_session_list(session_id or None)
        found: dict[str, GuestSession] = {}

        def take(frame: Frame) -> bool:
            if frame.type == wire.FRAME_OK:
                return True
            if frame.type != wire.FRAME_SESSION:
                raise WireError(f"frame {frame.type:#x} in a list of sessions")
            session = parse_session(frame.payload, vm_id=self._vm_id)
            if session.id in found or (session_id and session.id != session_id):
                raise WireError("a session that was not asked for")
            found[session.id] = session
            if len(found) > wire.WIRE_MAX_SESSIONS:
                raise WireError(f"more than {wire.WIRE_MAX_SESSIONS} sessions")
            return False

        try:
            await self._ask("list its sessions", request, take=take, timeout_s=timeout_s)
        except BangerError as error:
            if session_id and error.code is ErrorCode.NOT_FOUND:
                return []
            raise
        return sorted(found.values(), key=_age)

    async def start(
        self,
        session_id: str,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str],
        cwd: str = "",
        user: str = "",
        terminal: bool = False,
        stdin: bool = False,
        rows: int = 0,
        cols: int = 0,
        tags: Mapping[str, str],
        timeout_s: float = START_TIMEOUT_S,
    ) -> GuestSession:
        """Returns when the command runs, or could not: then its status is `failed`, and it is kept."""
        try:
            request = sessionwire.encode_session_start(
                session_id,
                name,
                argv=argv,
                env=env,
                cwd=cwd,
                user=user,
                tags=tag_words(tags),
                terminal=terminal,
                stdin=stdin,
                rows=rows,
                cols=cols,
            )
        except WireError as error:
            raise BangerError(ErrorCode.INVALID_ARGUMENT, str(error)) from error
        return await self._record("start the session", request, session_id=session_id, timeout_s=timeout_s)

    async def signal(self, session_id: str, number: int) -> None:
        """To the command's process group. WRONG_STATE when it has ended."""
        request = sessionwire.encode_session_signal(session_id, number)
        await self._ask("signal the session", request, take=_only_ok, timeout_s=TIMEOUT_S)

    async def stop(self, session_id: str, *, grace_s: float) -> GuestSession:
        """TERM to the group, KILL after grace_s; returns once it has ended."""
        request = sessionwire.encode_session_stop(session_id, round(grace_s * 1000))
        limit = grace_s + 3 * TIMEOUT_S
        return await self._record("stop the session", request, session_id=session_id, timeout_s=limit)

    async def remove(self, session_id: str, *, force: bool) -> None:
        """Its logs too. IN_USE while it runs, unless force kills it first."""
        request = sessionwire.encode_session_remove(session_id, force=force)
        await self._ask("remove the session", request, take=_only_ok, timeout_s=3 * TIMEOUT_S)

    async def error_log(self, session_id: str) -> str:
        """The end of what the command, or its launch, wrote to stderr; at most MAX_LAUNCH_LOG bytes of it."""
        request = sessionwire.encode_session_logs(session_id, stdout=False, tail=100)
        said = bytearray()

        def take(frame: Frame) -> bool:
            if frame.type == wire.FRAME_STDERR:
                said.extend(frame.payload)
                del said[:-MAX_LAUNCH_LOG]
            return frame.type == wire.FRAME_OK

        await self._ask("show the session's log", request, take=take, timeout_s=TIMEOUT_S)
        return "".join(
            letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}"
            for letter in said.decode("utf-8", "replace")
        )

    # underneath

    async def _record(self, what: str, request: bytes, *, session_id: str, timeout_s: float) -> GuestSession:
        answers: list[GuestSession] = []

        def take(frame: Frame) -> bool:
            if frame.type != wire.FRAME_OK:
                raise WireError("the agent does not answer the request")
            answers.append(parse_session(frame.payload, vm_id=self._vm_id))
            return True

        await self._ask(what, request, take=take, timeout_s=timeout_s)
        if answers[0].id != session_id:
            raise GuestUnreachable("the guest's agent answers nonsense", details="another session's record")
        return answers[0]

    async def _ask(self, what: str, request: bytes, *, take: _Take, timeout_s: float) -> None:
        """Send it, and give each frame that is answered to `take` until that is satisfied."""
        stream: FrameStream | None = None
        try:
            async with asyncio.timeout(timeout_s):
                stream, hello = await open_connection(self._vm_dir, timeout_s=min(timeout_s, TIMEOUT_S))
                if FEATURE not in hello.features:
                    raise self._too_old()
                await stream.write(request)
                while (frame := await stream.read()) is not None:
                    if frame.type == wire.FRAME_ERROR:
                        raise self._refused(refusal(frame.payload))
                    if take(frame):
                        return
            raise WireError("the connection ended without an answer")
        except TimeoutError as error:
            raise GuestTimeout(what, timeout_s) from error
        except WireError as error:
            raise GuestUnreachable("the guest's agent answers nonsense", details=str(error)) from error
        except OSError as error:
            raise GuestUnreachable("the guest's agent went away", details=repr(error)) from error
        finally:
            if stream is not None:
                await stream.aclose()

    def _too_old(self) -> BangerError:
        return BangerError(
            ErrorCode.WRONG_STATE,
            f"the agent in {self._vm_name} is older than sessions",
            hint=f"banger vm restart {self._vm_name}",
        )

    def _refused(self, error: AgentRefused) -> BangerError:
        if error.agent_code == "unsupported":
            return self._too_old()
        code = REFUSALS.get(error.agent_code)
        if code is None:
            return error
        return BangerError(code, error.brief, data={"agent_code": error.agent_code})


def parse_session(payload: bytes, *, vm_id: str) -> GuestSession:
    """A record as the agent says it. Raises WireError.

    Command, folder, variables and tags are what was asked for, unaltered: whoever prints them escapes them.
    """
    repeated: dict[int, list[str]] = {}
    for tag, value in wire.decode_fields(payload):
        repeated.setdefault(tag, []).append(value.decode("utf-8", "replace"))
    fields = Fields(payload)

    def last(tag: int) -> str:
        return repeated.get(tag, [""])[-1]

    def number(tag: int) -> int | None:
        return fields.number(tag) if tag in fields else None

    session_id, status = last(wire.SESSION_ID), fields.text(wire.SESSION_STATUS, most=32)
    if not sessionwire.is_session_id(session_id):
        raise WireError("a session without an id")
    if status not in STATUSES:
        raise WireError(f"a session that is {status[:32]!a}")
    argv = repeated.get(wire.SESSION_ARGUMENT, [])
    if len(argv) > wire.WIRE_MAX_ARGUMENTS:
        raise WireError("a session with too many arguments")
    flags = fields.number(wire.SESSION_FLAGS)
    terminal, stdin = (
        bool(flags & wire.SESSION_FLAG_TERMINAL),
        bool(flags & wire.SESSION_FLAG_STDIN),
    )
    code, signal = number(wire.SESSION_EXIT_CODE), number(wire.SESSION_EXIT_SIGNAL)
    if signal is not None:
        signal &= 0x7F
        code = 128 + signal
    folder = fields.text(wire.SESSION_STATE_DIR, most=256)
    stage = fields.text(wire.SESSION_LAUNCH_STAGE, most=32)
    launched = status != "failed" or stage == "running"
    return GuestSession(
        id=session_id,
        vm_id=vm_id,
        name=fields.text(wire.SESSION_NAME, most=64),
        status=status,
        backend="agent",
        attach_backend="vsock",
        attach_mode="terminal" if terminal else "pipe" if stdin else "output",
        command=argv[0] if argv else "",
        args=tuple(argv[1:]),
        left_out=fields.number(wire.SESSION_LEFT_OUT),
        cwd=last(wire.SESSION_CWD),
        user=last(wire.SESSION_USER),
        env=_pairs(repeated.get(wire.SESSION_ENV, [])),
        stdin_mode="pipe" if stdin else "closed",
        exit_code=None if code is None else code & 0xFF,
        exit_signal=signal,
        guest_pid=number(wire.SESSION_PID),
        guest_state_dir=folder,
        stdout_log_path=f"{folder}/stdout.log" if folder else "",
        stderr_log_path=f"{folder}/stderr.log" if folder and not terminal else "",
        stdout_bytes=number(wire.SESSION_STDOUT_BYTES),
        stderr_bytes=number(wire.SESSION_STDERR_BYTES),
        readers=number(wire.SESSION_READERS),
        writer=bool(fields.number(wire.SESSION_WRITER)),
        tags=_pairs(repeated.get(wire.SESSION_TAG, [])),
        last_error=fields.text(wire.SESSION_LAST_ERROR, most=1024),
        attachable=launched,
        reattachable=launched,
        launch_stage=stage,
        launch_message=fields.text(wire.SESSION_LAUNCH_MESSAGE, most=1024),
        created_at=_time(number(wire.SESSION_CREATED)),
        started_at=_time(number(wire.SESSION_STARTED)),
        updated_at=_time(number(wire.SESSION_UPDATED)),
        ended_at=_time(number(wire.SESSION_ENDED)),
    )


def _only_ok(frame: Frame) -> bool:
    if frame.type != wire.FRAME_OK:
        raise WireError("the agent does not answer the request")
    return True


def _pairs(words: Iterable[str]) -> dict[str, str]:
    pairs = (word.partition("=") for word in words)
    return {key: value for key, _, value in pairs}


def _time(seconds: int | None) -> datetime | None:
    if seconds is None:
        return None
    if seconds > MAX_TIME_S:
        raise WireError("a time that no clock shows")
    return datetime.fromtimestamp(seconds, UTC)


def _age(session: GuestSession) -> tuple[float, str]:
    return (session.created_at.timestamp() if session.created_at else 0.0, session.id)
