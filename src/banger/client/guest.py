"""Running a command in a guest, straight at its agent: no daemon in the data path, no threads.

One poll loop over the guest's connection, our three streams, signals, and what the caller wants watched
(its lease). The guest socket is opened directly; a caller that may not is served through the daemon's
Upgrade route. After a crash of ours the agent hangs up the command.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from banger.client.client import Client, quote
from banger.client.errors import GuestUnreachable
from banger.client.http import connect_unix
from banger.client.streams import Output, hang_up
from banger.client.terminal import (
    FORWARDED,
    OF_A_TERMINAL,
    RawTerminal,
    SignalPipe,
    is_background,
    window_size,
)
from banger.errors import BangerError, ErrorCode
from banger.guest import wire

CONNECT_TIMEOUT_S = 10.0
START_TIMEOUT_S = 60.0
"""From the request to STARTED: an emulated guest under load is slow, a dead one is not waited for."""
UPGRADE = "banger-agent/1"
MAX_KNOWN = 64
EARLY_S = 5.0
"""So long the daemon's answer may take: the agent does not wait for ever for a request (30 s)."""
MAX_QUEUED = 256 << 10
"""Bytes held for a reader of ours that is slow; past that the guest is not read."""
NOT_FOUND, NOT_EXECUTABLE = 127, 126
EXIT_STATUS = {"not_found": NOT_FOUND, "not_executable": NOT_EXECUTABLE}
SIGNAL_BASE = 128
IMPATIENT = 3
"""That many SIGINT or SIGTERM, and we go ourselves."""


class Companion(Protocol):
    """Something of the caller's that the loop looks after: its lease. All of it must be quick."""

    @property
    def fd(self) -> int:
        """What to watch, -1 for nothing just now."""
        ...

    def readable(self) -> None: ...

    def tick(self) -> None:
        """About once a second, and oftener."""
        ...


class CommandNotStarted(BangerError):
    """The agent could not start the command. status: what the caller should exit with, 0 for its own."""

    def __init__(self, brief: str, *, status: int, code: str) -> None:
        super().__init__(ErrorCode.GUEST_ERROR, brief, data={"agent_code": code})
        self.status = status


class AgentConnection(NamedTuple):
    """A blocking socket that speaks the agent's protocol, and what was read from it already."""

    socket: socket.socket
    early: bytes = b""


def connect_agent(client: Client, reference: str, *, purpose: str = "exec") -> AgentConnection:
    """Straight to the guest where its socket may be opened, else by way of the daemon.

    WRONG_STATE when it does not run, GUEST_UNREACHABLE when it does not answer. A client's second time knocks
    where the agent was the first time, so that the guest takes the connection while the daemon answers;
    nothing is asked of it before the daemon has named that very place again.
    """
    known = client.agents.pop(reference, None)
    early = _knock_early(*known) if known else None
    knocked = time.monotonic()
    try:
        where = client.connect_vm(reference, purpose=purpose)
        place = (where["vsock_path"], int(where["port"]))
    except BaseException:
        if early is not None:
            early.close()
        raise
    try:
        good = place == known and time.monotonic() - knocked < EARLY_S
        connection = _answered_early(early, good=good) or _handshake(*place)
        if len(client.agents) == MAX_KNOWN:
            client.agents.clear()
        client.agents[reference] = place
        return AgentConnection(connection)
    except (PermissionError, FileNotFoundError):
        return _upgrade(client, reference)
    except OSError as error:
        raise GuestUnreachable(
            f"the agent of {where['name']} does not answer",
            details=f"{where['vsock_path']}: {error}",
            hint=f"banger vm logs {where['name']}",
        ) from error


def _knock_early(path: str, port: int) -> socket.socket | None:
    try:
        return _knock(path, port)
    except OSError:  # the daemon will say why
        return None


def _answered_early(connection: socket.socket | None, *, good: bool) -> socket.socket | None:
    """None where there is nothing to go on with: no good any more, or the machine ended meanwhile."""
    if connection is None or not good:
        if connection is not None:
            connection.close()
        return None
    try:
        return _answered(connection)
    except ConnectionError:
        return None


def _handshake(path: str, port: int) -> socket.socket:
    return _answered(_knock(path, port))


def _knock(path: str, port: int) -> socket.socket:
    connection = connect_unix(path, CONNECT_TIMEOUT_S)
    try:
        connection.sendall(f"CONNECT {port}\n".encode())
        return connection
    except BaseException:
        connection.close()
        raise


def _answered(connection: socket.socket) -> socket.socket:
    """The same, after the monitor's answer; closed on failure."""
    try:
        line = b""
        while not line.endswith(b"\n"):
            byte = connection.recv(1)
            if not byte or len(line) > 32:
                raise ConnectionError(f"handshake {line!r}")
            line += byte
        if not line.startswith(b"OK "):
            raise ConnectionError(f"handshake {line!r}")
        return connection
    except BaseException:
        connection.close()
        raise


def _upgrade(client: Client, reference: str) -> AgentConnection:
    connection, response = client.open(
        "GET", f"/v1/vms/{quote(reference)}/agent", headers={"Connection": "Upgrade", "Upgrade": UPGRADE}
    )
    taken, early = connection.take_socket()
    if response.status != 101:
        taken.close()
        raise GuestUnreachable("the daemon does not pass the guest's agent on")
    return AgentConnection(taken, early)


class Exec:
    """One command in a guest with our standard streams. run() to its status; the socket is closed then."""

    def __init__(
        self,
        connection: AgentConnection,
        *,
        terminal: bool = False,
        stdin: int | None = 0,
        stdout: int = 1,
        stderr: int = 2,
        companion: Companion | None = None,
    ) -> None:
        self._connection = connection.socket
        self._early = connection.early
        self._terminal = terminal
        self._stdin = stdin
        self._companion = companion
        self._stdin_is_terminal = stdin is not None and os.isatty(stdin)
        self._frames = wire.FrameReader()
        self._started = False
        self._window = wire.WIRE_STDIN_WINDOW
        self._to_guest = bytearray()
        self._stdout, self._stderr = Output(stdout), Output(stderr)
        self._outputs = (self._stdout, self._stderr)
        self._size_of = (0 if stdin is None else stdin, stdout)
        self._size = (0, 0)
        self._raw: RawTerminal | None = None
        self._status: int | None = None
        self._ended = False  # the guest has said how
        self._impatience = 0

    def run(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, *, cwd: str = "", user: str = ""
    ) -> int:
        """The command's status: its exit code, or 128 + the signal that ended it.

        CommandNotStarted, GUEST_UNREACHABLE when the connection breaks before the command's end.
        """
        rows, cols = self._size = window_size(*self._size_of)
        try:
            request = wire.encode_exec(
                argv,
                env,
                cwd=cwd,
                user=user,
                terminal=self._terminal,
                stdin=self._stdin is not None,
                rows=rows,
                cols=cols,
            )
        except wire.WireError as error:
            self._connection.close()
            raise BangerError(ErrorCode.INVALID_ARGUMENT, str(error)) from None
        numbers = (*FORWARDED, *OF_A_TERMINAL) if self._terminal else FORWARDED
        try:
            self._connection.settimeout(CONNECT_TIMEOUT_S)
            self._connection.sendall(request)
            self._connection.setblocking(False)
            with SignalPipe(numbers) as signals:
                if not self._terminal or self._stdin is None:
                    return self._loop(signals)
                with RawTerminal(self._stdin) as self._raw:
                    return self._loop(signals)
        except wire.WireError as error:
            raise GuestUnreachable("the guest's agent speaks nonsense", details=str(error)) from error
        except (BrokenPipeError, ConnectionError, TimeoutError) as error:
            raise self._lost(error) from error
        finally:
            if self._ended or not self._started:
                self._connection.close()
            else:
                hang_up(self._connection)
            for output in self._outputs:
                output.close()

    def _lost(self, error: Exception | None) -> BangerError:
        if not self._started:
            return GuestUnreachable(
                "the guest's agent does not answer", details=str(error) if error else None
            )
        return GuestUnreachable(
            "the connection to the guest broke before the command ended",
            details=str(error) if error else None,
            hint="`banger vm list` shows whether the VM still runs",
        )

    # the loop

    def _loop(self, signals: SignalPipe) -> int:
        give_up = time.monotonic() + START_TIMEOUT_S
        self._feed(self._early)
        while self._status is None or any(output.queue for output in self._outputs):
            ready = self._wait(signals)
            if signals.fd in ready:
                self._forward(signals.read())
                if self._status is not None and self._impatience >= IMPATIENT:
                    break
            if self._companion is not None:
                if self._companion.fd in ready:
                    self._companion.readable()
                self._companion.tick()
            guest = self._connection.fileno()
            if ready.get(guest, 0) & select.POLLOUT:
                self._flush_guest()
            if ready.get(guest, 0) & ~select.POLLOUT and self._status is None:
                self._read_guest()
            for output in self._outputs:
                if output.fd in ready and output.queue and not output.write():
                    return SIGNAL_BASE + signal.SIGPIPE
            if self._stdin is not None and self._stdin in ready:
                self._read_stdin()
            if not self._started and self._status is None and time.monotonic() > give_up:
                raise TimeoutError(f"the command did not start within {START_TIMEOUT_S:.0f} s")
        return self._status if self._status is not None else SIGNAL_BASE

    def _wait(self, signals: SignalPipe) -> dict[int, int]:
        wanted: dict[int, int] = {signals.fd: select.POLLIN}
        if self._companion is not None and self._companion.fd >= 0:
            wanted[self._companion.fd] = select.POLLIN
        if self._status is None:
            guest = 0
            if max(len(output.queue) for output in self._outputs) < MAX_QUEUED:
                guest |= select.POLLIN
            if self._to_guest:
                guest |= select.POLLOUT
            wanted[self._connection.fileno()] = guest
            if self._stdin is not None and self._may_read_stdin(self._stdin):
                wanted[self._stdin] = select.POLLIN
        for output in self._outputs:
            if output.queue:
                wanted[output.fd] = wanted.get(output.fd, 0) | select.POLLOUT
        poll = select.poll()
        for descriptor, events in wanted.items():
            poll.register(descriptor, events)
        return dict(poll.poll(1000))

    def _may_read_stdin(self, descriptor: int) -> bool:
        if not self._started or self._window <= 0 or len(self._to_guest) >= MAX_QUEUED:
            return False
        return not (self._stdin_is_terminal and is_background(descriptor))

    # the guest's side

    def _read_guest(self) -> None:
        try:
            data = self._connection.recv(256 << 10)
        except BlockingIOError:
            return
        if not data:
            raise self._lost(None)
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            self._take(frame.type, frame.payload)
            if self._status is not None:
                return

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == wire.FRAME_STDOUT:
            self._stdout.queue += payload
        elif kind == wire.FRAME_STDERR:
            self._stderr.queue += payload
        elif kind == wire.FRAME_WINDOW:
            self._window += wire.Fields(payload).number(wire.WINDOW_BYTES)
        elif kind == wire.FRAME_STARTED:
            self._started = True
            if self._terminal and window_size(*self._size_of) != self._size:
                self._send_size()  # it changed before we heard of such changes
        elif kind == wire.FRAME_EXIT:
            fields = wire.Fields(payload)
            number = fields.number(wire.EXIT_SIGNAL)
            self._ended = True
            self._status = (SIGNAL_BASE + number if number else fields.number(wire.EXIT_CODE)) & 0xFF
        elif kind == wire.FRAME_ERROR:
            fields = wire.Fields(payload)
            code = fields.text(wire.ERROR_CODE)
            message = fields.text(wire.ERROR_MESSAGE) or code
            raise CommandNotStarted(message, status=EXIT_STATUS.get(code, 0), code=code)
        # HELLO, and whatever a newer agent says besides

    def _send(self, frame: bytes) -> None:
        self._to_guest += frame
        self._flush_guest()

    def _flush_guest(self) -> None:
        try:
            while self._to_guest:
                sent = self._connection.send(self._to_guest)
                del self._to_guest[:sent]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            # the command may have ended while we sent: its EXIT is still to be read
            self._to_guest.clear()
            self._stdin = None

    # our side

    def _read_stdin(self) -> None:
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, min(wire.WIRE_MAX_PAYLOAD, self._window))
        except BlockingIOError:
            return
        except OSError:  # a terminal that has gone
            data = b""
        if data:
            self._window -= len(data)
            self._send(wire.encode_stdin(data))
        else:
            self._end_stdin()

    def _end_stdin(self) -> None:
        self._stdin = None
        self._send(wire.encode_stdin(b""))

    def _forward(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self._send_size()
                continue
            if number in (signal.SIGTSTP, signal.SIGCONT):
                self._stopped_or_continued(number)
                continue
            if number in (signal.SIGINT, signal.SIGTERM):
                self._impatience += 1
            # at a terminal keys are no signals: a TERM is meant for us (and shells ignore it)
            leaving = number == signal.SIGHUP or (self._terminal and number == signal.SIGTERM)
            if leaving or self._impatience >= IMPATIENT:
                # our terminal has gone, or our user has had enough: closing hangs the command up
                self._status = SIGNAL_BASE + number
                self._impatience = IMPATIENT
                return
            self._send(wire.encode_signal(number))

    def _stopped_or_continued(self, number: int) -> None:
        """By a signal from elsewhere (Ctrl-Z is the guest's): who looks meanwhile gets a usable terminal."""
        if number == signal.SIGTSTP:
            if self._raw is not None:
                self._raw.leave()
            handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTSTP)
            signal.signal(signal.SIGTSTP, handler)
        if self._raw is not None:
            self._raw.enter()
        self._send_size()

    def _send_size(self) -> None:
        self._size = window_size(*self._size_of)
        self._send(wire.encode_resize(*self._size))
