"""What is said between us and a guest's agent about one stream: bytes in, bytes out, no waiting.

A Dialogue is fed what the socket had and gives what is to be sent and the output that came; who drives it
waits: client/process.py with poll, client/aioprocess.py in an event loop. What a guest sends is hostile:
malformed bytes end the dialogue with GUEST_UNREACHABLE.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from banger.client.errors import GuestUnreachable
from banger.client.guest import not_started
from banger.client.values import Output, Replay, StreamName
from banger.errors import BangerError, ErrorCode
from banger.guest import sessionwire, wire
from banger.guest.wire import Fields
from banger.model.sessions import REFUSALS

PIECE = wire.WIRE_MAX_PAYLOAD
MAX_LINE = 1 << 20
SIGKILL = 9
_NAMES: dict[int, StreamName] = {wire.FRAME_STDOUT: "stdout", wire.FRAME_STDERR: "stderr"}


class Dialogue:
    """The base: output both ways with the agent's window, and how it ends."""

    patient: bool = False
    """A greeting is answer enough: what is asked for may take its time."""

    def __init__(self, request: bytes) -> None:
        self.outgoing: bytearray = bytearray(request)
        self.arrived: deque[Output] = deque()
        self.held: int = 0
        """Bytes in `arrived`."""
        self.answered: bool = False
        self.started: bool = False
        self.ended: bool = False
        self.failure: BangerError | None = None
        self.pid: int = 0
        self.window: int = wire.WIRE_STDIN_WINDOW
        self.input_ended: bool = False
        self._frames = wire.FrameReader()

    # what comes

    def feed(self, data: bytes) -> None:
        """b"" is the end of the connection."""
        if self.ended:
            return
        try:
            if not data:
                self.lost(None)
                return
            for frame in self._frames.feed(data):
                self._accept(frame.type, frame.payload)
                if self.ended:
                    return
        except wire.WireError as error:
            self.fail(GuestUnreachable("the guest's agent speaks nonsense", details=str(error)))

    def lost(self, error: Exception | None) -> None:
        """The connection broke."""
        self.fail(
            GuestUnreachable(
                "the connection to the guest broke" if self.answered else "the guest's agent does not answer",
                details=str(error) if error else None,
                hint="`banger vm list` shows whether the VM still runs",
            )
        )

    def fail(self, failure: BangerError) -> None:
        if not self.ended:
            self.failure = failure
            self.ended = True

    def take(self) -> Output | None:
        """The next piece of output, oldest first."""
        if not self.arrived:
            return None
        piece = self.arrived.popleft()
        self.held -= len(piece.data)
        return piece

    # what we say

    @property
    def room(self) -> int:
        """Bytes of input that may be given now."""
        return min(self.window, PIECE) if self.started and not self.ended else 0

    def put(self, data: bytes) -> None:
        """At most `room` bytes of input."""
        if data:
            self.window -= len(data)
            self.outgoing += wire.encode_stdin(data)

    def end_input(self) -> None:
        if not self.input_ended and not self.ended:
            self.input_ended = True
            self.outgoing += wire.encode_stdin(b"")

    def send_signal(self, number: int) -> None:
        if not self.ended:
            self.outgoing += wire.encode_signal(number)

    def resize(self, rows: int, cols: int) -> None:
        if not self.ended:
            self.outgoing += wire.encode_resize(rows, cols)

    def part(self) -> None:
        """We are about to close in the middle: what is said before."""

    # frames

    def _accept(self, kind: int, payload: bytes) -> None:
        if kind == wire.FRAME_HELLO:
            self.answered = self.answered or self.patient
            return
        self.answered = True
        if kind in _NAMES:
            if payload:
                self.arrived.append(Output(_NAMES[kind], payload))
                self.held += len(payload)
        elif kind == wire.FRAME_WINDOW:
            self.window += Fields(payload).number(wire.WINDOW_BYTES)
        elif kind == wire.FRAME_ERROR:
            self.fail(self._refusal(Fields(payload)))
        else:
            self._take(kind, Fields(payload))

    def _take(self, kind: int, fields: Fields) -> None:
        if kind == wire.FRAME_OK:
            self.ended = True

    def _refusal(self, fields: Fields) -> BangerError:
        """A session's; see also CommandDialogue."""
        code = fields.text(wire.ERROR_CODE, most=64)
        message = fields.text(wire.ERROR_MESSAGE, most=1024) or code
        if code == "unsupported":
            return BangerError(
                ErrorCode.WRONG_STATE,
                "the guest's agent is older than sessions",
                hint="restart the VM: banger vm restart",
            )
        return BangerError(REFUSALS.get(code, ErrorCode.GUEST_ERROR), message, data={"agent_code": code})


class _Ending(Dialogue):
    """One that ends with the command. returncode: None until then, and where nobody knows it."""

    returncode: int | None = None

    def _exit(self, fields: Fields) -> None:
        if wire.EXIT_SIGNAL in fields and fields.number(wire.EXIT_SIGNAL):
            self.returncode = -(fields.number(wire.EXIT_SIGNAL) & 0x7F)
        elif wire.EXIT_CODE in fields:
            self.returncode = fields.number(wire.EXIT_CODE) & 0xFF
        else:
            self.fail(BangerError(ErrorCode.GUEST_ERROR, "how the command ended is not known"))
        self.ended = True


class CommandDialogue(_Ending):
    """A command: EXEC to EXIT."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        cwd: str = "",
        user: str = "",
        stdin: bool = False,
        terminal: bool = False,
        size: tuple[int, int] = (0, 0),
    ) -> None:
        """INVALID_ARGUMENT for what no command line can hold."""
        try:
            request = wire.encode_exec(
                argv, env, cwd=cwd, user=user, stdin=stdin, terminal=terminal, rows=size[0], cols=size[1]
            )
        except wire.WireError as error:
            raise BangerError(ErrorCode.INVALID_ARGUMENT, str(error)) from None
        super().__init__(request)
        self.argv: tuple[str, ...] = tuple(argv)
        self.input_ended: bool = not stdin

    def part(self) -> None:
        self.send_signal(SIGKILL)

    def _take(self, kind: int, fields: Fields) -> None:
        if kind == wire.FRAME_STARTED:
            self.started = True
            self.pid: int = fields.number(wire.STARTED_PID)
        elif kind == wire.FRAME_EXIT:
            self._exit(fields)

    def _refusal(self, fields: Fields) -> BangerError:
        return not_started(fields)


class LogsDialogue(Dialogue):
    """A session's logs: to their end or, following, to the command's."""

    patient = True

    def __init__(
        self, session_id: str, *, follow: bool, stdout: bool = True, stderr: bool = True, tail: int | None
    ) -> None:
        super().__init__(
            sessionwire.encode_session_logs(
                session_id, follow=follow, stdout=stdout, stderr=stderr, tail=tail
            )
        )


class SendDialogue(Dialogue):
    """Bytes into a session's stdin, waiting for a command that does not read."""

    patient = True

    def __init__(self, session_id: str, *, end: bool) -> None:
        super().__init__(sessionwire.encode_session_send(session_id, end=end))
        self.started = True


class AttachDialogue(_Ending):
    """At a session's streams until it ends, or we part. What was taken is told: nobody is shown it twice."""

    def __init__(
        self, session_id: str, *, write: bool, replay: Replay, size: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__(
            sessionwire.encode_session_attach(
                session_id, write=write, replay=replay, rows=size[0], cols=size[1]
            )
        )
        self.writer: bool = False
        self._seen = {"stdout": 0, "stderr": 0}
        self._told = dict(self._seen)

    @property
    def room(self) -> int:
        return super().room if self.writer else 0

    def take(self) -> Output | None:
        piece = super().take()
        if piece is not None:
            self._seen[piece.stream] += len(piece.data)
            if sum(self._seen.values()) - sum(self._told.values()) >= PIECE:
                self._tell()
        return piece

    def part(self) -> None:
        self._tell()
        if self.started and not self.ended:
            self.outgoing.extend(sessionwire.encode_session_detach())

    def _tell(self) -> None:
        if self.started and self._seen != self._told:
            self._told = dict(self._seen)
            self.outgoing.extend(sessionwire.encode_session_seen(self._seen["stdout"], self._seen["stderr"]))

    def _take(self, kind: int, fields: Fields) -> None:
        if kind == wire.FRAME_STARTED:
            self.started = True
            self.writer = bool(fields.number(wire.STARTED_FLAGS) & wire.STARTED_FLAG_WRITER)
            self._seen = {
                "stdout": fields.number(wire.STARTED_STDOUT_OFFSET),
                "stderr": fields.number(wire.STARTED_STDERR_OFFSET),
            }
            self._told = dict(self._seen)
        elif kind == wire.FRAME_EXIT:
            self._exit(fields)


class Lines:
    """Output in, lines out: text without its line ends; what is not UTF-8 becomes U+FFFD."""

    def __init__(self, stream: StreamName | None) -> None:
        """None: of both streams, as they come."""
        self._stream = stream
        self._pending: dict[StreamName, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

    def feed(self, piece: Output) -> list[str]:
        """A line longer than MAX_LINE comes in pieces."""
        if self._stream not in (None, piece.stream):
            return []
        pending = self._pending[piece.stream]
        pending += piece.data
        *lines, rest = pending.split(b"\n")
        if len(rest) >= MAX_LINE:
            lines.append(rest)
            rest = bytearray()
        self._pending[piece.stream] = rest
        return [_line(line) for line in lines]

    def rest(self) -> list[str]:
        """What stands after the last line end."""
        return [_line(pending) for pending in self._pending.values() if pending]


def _line(data: bytearray) -> str:
    return data.removesuffix(b"\r").decode("utf-8", "replace")
