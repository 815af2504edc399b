"""Attaching to a session: its output here, our keys there, until it ends or we leave. The session goes on.

Straight at the guest's socket, so the daemon may be killed meanwhile. Through the daemon (a caller that may
not open that socket) a broken connection is made again, and goes on at the very byte. What has been shown is
told to the agent as we go (SEEN), so that the next attachment begins there; after a kill -9 of ours at most
the last second is shown again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from banger.client.agentconnection import AgentConnection
from banger.client.exchange import IMPATIENT, SIGNAL_BASE
from banger.client.keys import DetachFilter, KeyTerminal
from banger.client.sessionstream import SessionExchange
from banger.client.streams import Output
from banger.client.terminal import (
    FORWARDED,
    OF_A_TERMINAL,
    RawTerminal,
    SignalPipe,
    is_background,
    stop_process,
    window_size,
)
from banger.errors import BangerError, ErrorCode
from banger.guest import sessionwire, wire
from banger.guest.wire import Fields

SEEN_EVERY_BYTES = 64 << 10
SEEN_EVERY_S = 1.0
LEAVE_TIMEOUT_S = 5.0
"""For the agent's word that it knows what we have seen."""
COMMAND_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Sent on by whoever has the session's stdin. TERM and HUP are for us: we leave."""


class AttachOptions(NamedTuple):
    """terminal: the session has one. write: ask for its stdin. replay: `unseen`, `all` or `none`.

    pass_end: the end of our stdin is the end of the session's; a terminal's always is.
    """

    session_id: str
    terminal: bool
    write: bool
    replay: str = "unseen"
    detach_keys: bytes = b"\x10\x11"
    pass_end: bool = False


class Outcome(NamedTuple):
    """status: what to exit with. detached: the session was left, and goes on."""

    status: int
    detached: bool


class Attachment(SessionExchange):
    """run() once; the socket is closed then. on_read_only is told when another has the session's stdin."""

    def __init__(
        self,
        connection: AgentConnection,
        options: AttachOptions,
        *,
        stdin: int | None = 0,
        stdout: int = 1,
        stderr: int = 2,
        on_read_only: Callable[[], None] = lambda: None,
        reconnect: Callable[[], AgentConnection] | None = None,
    ) -> None:
        super().__init__(connection, stdin=stdin, stdout=stdout, stderr=stderr)
        self._options = options
        self._on_read_only = on_read_only
        self._reconnect = reconnect
        self._again = reconnect  # once for each break: an agent that hangs up at once is not asked for ever
        self._filter = DetachFilter(options.detach_keys)
        self._from_terminal = stdin is not None and os.isatty(stdin)
        self._sizes = tuple(fd for fd in (stdin, stdout, stderr) if fd is not None)
        self._signals: SignalPipe | None = None
        self._mode: KeyTerminal | RawTerminal | None = None
        self._stack = ExitStack()
        self._started = False
        self._writer = False
        self._offsets = [0, 0]  # what we have received of stdout and stderr, as offsets in the logs
        self._skip = [0, 0]  # of what comes, how much we have already
        self._seen = [0, 0]  # what we have shown
        self._told = [0, 0]  # what the agent knows of that
        self._told_at = 0.0
        self._leaving: int | None = None
        self._leave_by = 0.0
        self._detached = False
        self._impatience = 0
        self._end_typed = False

    def run(self) -> Outcome:
        """GUEST_UNREACHABLE when the guest goes; else how the command ended, or how we left."""
        numbers = (*FORWARDED, *OF_A_TERMINAL)
        try:
            with self._stack, SignalPipe(numbers) as self._signals:
                status = self._exchange(self._request(self._options.replay))
                self._tell(last=True)
                return Outcome(status, self._detached)
        finally:
            self.close()

    def _request(self, replay: str) -> bytes:
        options = self._options
        rows, cols = window_size(*self._sizes) if options.terminal else (0, 0)
        return sessionwire.encode_session_attach(
            options.session_id, write=options.write, replay=replay, rows=rows, cols=cols
        )

    # what the agent says

    def _take(self, kind: int, payload: bytes) -> None:
        fields = Fields(payload)
        if kind == wire.FRAME_STARTED:
            self._begin_stream(fields)
        elif kind == wire.FRAME_EXIT:
            self._ended(fields)
        elif kind == wire.FRAME_OK and self._leaving is not None:
            self._status = self._leaving

    def _begin_stream(self, fields: Fields) -> None:
        begins = [fields.number(wire.STARTED_STDOUT_OFFSET), fields.number(wire.STARTED_STDERR_OFFSET)]
        self._writer = bool(fields.number(wire.STARTED_FLAGS) & wire.STARTED_FLAG_WRITER)
        if self._started:
            # again, after a broken connection: it begins where the agent knew us to be, at most where we are
            self._skip = [max(0, ours - theirs) for ours, theirs in zip(self._offsets, begins, strict=True)]
            self._reconnect = self._again
            return
        self._started = True
        self._offsets, self._seen, self._told = begins, list(begins), list(begins)
        self._told_at = time.monotonic()
        if self._options.write and not self._writer:
            self._on_read_only()
        self._set_terminal()
        if self._writer and self._options.terminal and self._from_terminal:
            # as docker: a change of size has full-screen programs draw themselves for the newcomer
            rows, cols = window_size(*self._sizes)
            self._send(wire.encode_resize(rows + 1, cols + 1))
            self._send(wire.encode_resize(rows, cols))

    def _set_terminal(self) -> None:
        stdin = self._stdin
        if stdin is None:
            return
        if not self._from_terminal:
            if not self._writer:
                self._stdin = None  # a pipe or a file: nobody types detach keys there
            return
        if self._writer and self._options.terminal:
            self._mode = RawTerminal(stdin)
        elif is_background(stdin):
            return
        else:
            self._mode = KeyTerminal(
                stdin,
                lines=self._writer,
                keys=self._options.detach_keys,
                keep_output=not self._options.terminal,
            )
        self._stack.enter_context(self._mode)

    def _ended(self, fields: Fields) -> None:
        if wire.EXIT_SIGNAL in fields:
            self._status = (SIGNAL_BASE + fields.number(wire.EXIT_SIGNAL)) & 0xFF
        elif wire.EXIT_CODE in fields:
            self._status = fields.number(wire.EXIT_CODE) & 0xFF
        elif self._leaving is not None:
            self._status = self._leaving
        else:
            raise BangerError(ErrorCode.GUEST_ERROR, "how the session's command ended is not known")
        self._detached = False

    def _output(self, output: Output, payload: bytes) -> None:
        which = self._outputs.index(output)
        skipped = min(self._skip[which], len(payload))
        self._skip[which] -= skipped
        self._offsets[which] += len(payload) - skipped
        output.queue += payload[skipped:]

    def _shown(self, output: Output, count: int) -> None:
        self._seen[self._outputs.index(output)] += count

    # what we say

    def _watched(self) -> tuple[int, ...]:
        return (self._signals.fd,) if self._signals is not None else ()

    def _prepare(self) -> None:
        if self._leaving is not None and time.monotonic() > self._leave_by:
            self._status = self._leaving
        elif self._started and self._leaving is None:
            self._tell(last=False)

    def _next_s(self) -> float:
        return self._told_at + SEEN_EVERY_S - time.monotonic() if self._seen != self._told else 1.0

    def _woken(self, ready: dict[int, int]) -> None:
        if self._signals is not None and self._signals.fd in ready:
            self._signalled(self._signals.read())

    def _tell(self, *, last: bool) -> None:
        """What we have shown, to the agent: at once where it is much or we go, else once a second."""
        news = sum(self._seen) - sum(self._told)
        if not self._started or not news:
            return
        if last or news >= SEEN_EVERY_BYTES or time.monotonic() - self._told_at >= SEEN_EVERY_S:
            self._told, self._told_at = list(self._seen), time.monotonic()
            self._send(sessionwire.encode_session_seen(*self._seen))

    def _leave(self, status: int) -> None:
        """Detach: tell what was seen, and wait until the agent knows it."""
        if self._leaving is not None or not self._started:
            self._status, self._dropping = status, True
            return
        self._stdin, self._dropping, self._detached = None, True, True
        self._leaving, self._leave_by = status, time.monotonic() + LEAVE_TIMEOUT_S
        self._tell(last=True)
        self._send(sessionwire.encode_session_detach())

    def _reader_gone(self) -> None:
        self._leave(SIGNAL_BASE + signal.SIGPIPE)

    def _lost(self, error: Exception | None) -> None:
        if self._leaving is not None:
            self._status = self._leaving
        elif self._started and self._reconnect is not None:
            self._connection.close()
            try:
                connection = self._reconnect()
            except BangerError as failure:
                super()._lost(failure)
                return
            self._again, self._reconnect = self._reconnect, None
            self._connection, self._frames = connection.socket, wire.FrameReader()
            self._to_guest.clear()
            self._window = wire.WIRE_STDIN_WINDOW
            self._begin(self._request("unseen"))
            self._feed(connection.early)
        else:
            super()._lost(error)

    def _may_read_stdin(self, descriptor: int) -> bool:
        if not self._started or (self._from_terminal and is_background(descriptor)):
            return False
        return not self._writer or super()._may_read_stdin(descriptor)

    def _typed(self, data: bytes) -> None:
        if not self._from_terminal:
            if data or self._options.pass_end:
                self._send_stdin(data)
            return
        passed = self._filter.feed(data)
        if not data and self._options.terminal:
            self._leave(SIGNAL_BASE + signal.SIGHUP)  # our terminal has gone
        elif not data and not self._end_typed:
            if self._writer:
                self._send_stdin(b"")
            self._stdin = self._sizes[0]  # ctrl-d: detach keys may follow
            self._end_typed = True
        elif passed and self._writer and not self._end_typed:
            self._send_stdin(passed)
        if self._filter.detached:
            self._leave(0)

    def _signalled(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self._resize()
            elif number == signal.SIGTSTP:
                self._stopped()
            elif number == signal.SIGCONT:
                self._continued()
            elif number in COMMAND_SIGNALS and self._writer and self._impatience < IMPATIENT - 1:
                self._impatience += number == signal.SIGINT
                self._send(wire.encode_signal(number))
            elif number in (signal.SIGUSR1, signal.SIGUSR2):
                pass
            else:
                self._leave(SIGNAL_BASE + number)

    def _stopped(self) -> None:
        """By a signal from elsewhere: whoever looks gets a usable terminal."""
        if self._mode is not None:
            self._mode.leave()
        stop_process()
        self._continued()

    def _continued(self) -> None:
        """In front again, or for the first time."""
        if self._mode is not None:
            self._mode.enter()
        elif self._started and self._from_terminal:
            self._set_terminal()
        self._resize()

    def _resize(self) -> None:
        if self._writer and self._options.terminal:
            self._send(wire.encode_resize(*window_size(*self._sizes)))
