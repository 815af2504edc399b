"""One exchange with a guest's agent, in one poll loop: its frames, our streams. No threads.

The base of a command (client/guest.py), of an attachment (client/attach.py), of logs and send
(client/sessionstream.py): those say what frames mean and what a break does. No wait is longer than a second.
"""

from __future__ import annotations

import os
import select
import time

from banger.client.agentconnection import CONNECT_TIMEOUT_S, AgentConnection
from banger.client.errors import GuestUnreachable
from banger.client.streams import Output
from banger.errors import BangerError
from banger.guest import wire
from banger.guest.wire import Fields

ANSWER_TIMEOUT_S = 60.0
"""From the request to the first word of an answer: an emulated guest under load is slow."""
MAX_QUEUED = 256 << 10
"""Bytes held for a reader of ours that is slow; past that the guest is not read."""
SIGNAL_BASE = 128
PIPE_STATUS = 141
"""Whoever read our output has gone: 128 + SIGPIPE."""
IMPATIENT = 3
"""That many SIGINT or SIGTERM, and we go ourselves."""


class Exchange:
    """Sends the request and runs until `_status` is set and our outputs have taken everything."""

    _patient = False
    """A greeting is answer enough: what is asked for may take its time."""

    def __init__(
        self, connection: AgentConnection, *, stdin: int | None = None, stdout: int = 1, stderr: int = 2
    ) -> None:
        self._connection = connection.socket
        self._early = connection.early
        self._stdin = stdin
        self._stdout, self._stderr = Output(stdout), Output(stderr)
        self._outputs = (self._stdout, self._stderr)
        self._frames = wire.FrameReader()
        self._window = wire.WIRE_STDIN_WINDOW
        self._to_guest = bytearray()
        self._answered = False
        self._status: int | None = None
        self._dropping = False  # nothing more is shown: we are leaving

    # what a kind of exchange says for itself

    def _take(self, kind: int, payload: bytes) -> None:
        """A frame that is neither output nor error."""
        raise NotImplementedError

    def _typed(self, data: bytes) -> None:
        """What our stdin had; b"" is its end."""
        raise NotImplementedError

    def _refusal(self, fields: Fields) -> BangerError:
        """What an ERROR frame says. Raises WireError."""
        raise NotImplementedError

    def _asked(self) -> None:
        """The request is sent; nothing has been read."""

    def _shown(self, output: Output, count: int) -> None:
        """So many bytes of the session's output were taken from us."""

    def _lost(self, error: Exception | None) -> None:
        """The connection broke."""
        raise GuestUnreachable(
            "the connection to the guest broke" if self._answered else "the guest's agent does not answer",
            details=str(error) if error else None,
            hint="`banger vm list` shows whether the VM still runs",
        )

    def _prepare(self) -> None:
        """Before each wait."""

    def _next_s(self) -> float:
        """Seconds until there is something to do of its own accord."""
        return 1.0

    def _woken(self, ready: dict[int, int]) -> None:
        """After each wait, before anything is read."""

    def _watched(self) -> tuple[int, ...]:
        """Descriptors of its own that end a round."""
        return ()

    # the loop

    def _exchange(self, request: bytes) -> int:
        try:
            self._begin(request)
            self._asked()
            self._feed(self._early)
            give_up = time.monotonic() + ANSWER_TIMEOUT_S
            while self._status is None or (any(o.queue for o in self._outputs) and not self._dropping):
                self._round()
                if not self._answered and time.monotonic() > give_up:
                    raise TimeoutError(f"no answer within {ANSWER_TIMEOUT_S:.0f} s")
            return self._status
        except wire.WireError as error:
            raise GuestUnreachable("the guest's agent speaks nonsense", details=str(error)) from error
        except TimeoutError as error:
            raise GuestUnreachable("the guest's agent does not answer", details=str(error)) from error

    def _begin(self, request: bytes) -> None:
        try:
            self._connection.settimeout(CONNECT_TIMEOUT_S)
            self._connection.sendall(request)
        except ConnectionError as error:
            raise GuestUnreachable("the guest's agent does not answer", details=str(error)) from error
        self._connection.setblocking(False)

    def close(self) -> None:
        self._connection.close()
        for output in self._outputs:
            output.close()

    def _round(self) -> None:
        self._prepare()
        ready = self._wait()
        self._woken(ready)
        guest = self._connection.fileno()
        if ready.get(guest, 0) & select.POLLOUT:
            self._flush()
        if ready.get(guest, 0) & ~select.POLLOUT and self._status is None:
            self._read_guest()
        for output in self._outputs:
            if output.fd in ready and output.queue and not self._dropping:
                before = len(output.queue)
                if not output.write():
                    self._reader_gone()
                    return
                self._shown(output, before - len(output.queue))
        if self._stdin is not None and self._stdin in ready and self._status is None:
            self._read_stdin(self._stdin)

    def _reader_gone(self) -> None:
        """Nobody reads what we print."""
        self._status, self._dropping = PIPE_STATUS, True

    def _wait(self) -> dict[int, int]:
        wanted = dict.fromkeys(self._watched(), select.POLLIN)
        if self._status is None:
            guest = 0
            if self._dropping or max(len(output.queue) for output in self._outputs) < MAX_QUEUED:
                guest |= select.POLLIN
            if self._to_guest:
                guest |= select.POLLOUT
            wanted[self._connection.fileno()] = guest
            if self._stdin is not None and self._may_read_stdin(self._stdin):
                wanted[self._stdin] = select.POLLIN
        for output in self._outputs:
            if output.queue and not self._dropping:
                wanted[output.fd] = wanted.get(output.fd, 0) | select.POLLOUT
        poll = select.poll()
        for descriptor, events in wanted.items():
            poll.register(descriptor, events)
        return dict(poll.poll(1000 * min(1.0, max(0.0, self._next_s()))))

    def _may_read_stdin(self, _descriptor: int) -> bool:
        return self._window > 0 and len(self._to_guest) < MAX_QUEUED

    def _read_guest(self) -> None:
        try:
            data = self._connection.recv(256 << 10)
        except BlockingIOError:
            return
        except ConnectionError as error:
            self._lost(error)
            return
        if data:
            self._feed(data)
        else:
            self._lost(None)

    def _feed(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            self._accept(frame.type, frame.payload)
            if self._status is not None:
                return

    def _accept(self, kind: int, payload: bytes) -> None:
        if kind == wire.FRAME_HELLO:
            self._answered = self._answered or self._patient
            return
        self._answered = True
        if kind in (wire.FRAME_STDOUT, wire.FRAME_STDERR):
            if not self._dropping:
                self._output(self._stdout if kind == wire.FRAME_STDOUT else self._stderr, payload)
        elif kind == wire.FRAME_WINDOW:
            self._window += Fields(payload).number(wire.WINDOW_BYTES)
        elif kind == wire.FRAME_ERROR:
            raise self._refusal(Fields(payload))
        else:
            self._take(kind, payload)

    def _output(self, output: Output, payload: bytes) -> None:
        output.queue += payload

    def _send(self, frame: bytes) -> None:
        self._to_guest += frame
        self._flush()

    def _send_stdin(self, data: bytes) -> None:
        """At most the window; b"" is the end."""
        self._window -= len(data)
        self._send(wire.encode_stdin(data))

    def _flush(self) -> None:
        try:
            while self._to_guest:
                sent = self._connection.send(self._to_guest)
                del self._to_guest[:sent]
        except BlockingIOError:
            pass
        except ConnectionError:
            self._to_guest.clear()  # what it had said before is still to be read, and why it went

    def _read_stdin(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, max(1, min(wire.WIRE_MAX_PAYLOAD, self._window)))
        except BlockingIOError:
            return
        except OSError:  # a terminal that has gone, or never open
            data = b""
        if not data:
            self._stdin = None
        self._typed(data)
