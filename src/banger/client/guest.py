"""Running a command in a guest, straight at its agent: no daemon in the data path, no threads.

client/exchange.py's loop over the guest's connection and our three streams, with signals, and with what the
caller wants watched (its lease). After a crash of ours the agent hangs up the command.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

from banger.client.agentconnection import AgentConnection
from banger.client.errors import GuestUnreachable
from banger.client.exchange import IMPATIENT, SIGNAL_BASE, Exchange
from banger.client.streams import hang_up
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
from banger.guest import wire
from banger.guest.wire import Fields

NOT_FOUND, NOT_EXECUTABLE = 127, 126
EXIT_STATUS = {"not_found": NOT_FOUND, "not_executable": NOT_EXECUTABLE}


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
        self.status: int = status


def not_started(fields: Fields) -> CommandNotStarted:
    """What an ERROR frame says. Raises WireError."""
    code = fields.text(wire.ERROR_CODE)
    return CommandNotStarted(
        fields.text(wire.ERROR_MESSAGE) or code, status=EXIT_STATUS.get(code, 0), code=code
    )


class Exec(Exchange):
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
        super().__init__(connection, stdin=stdin, stdout=stdout, stderr=stderr)
        self._terminal = terminal
        self._companion = companion
        self._stdin_is_terminal = stdin is not None and os.isatty(stdin)
        self._size_of = (0 if stdin is None else stdin, stdout)
        self._size = (0, 0)
        self._stack = ExitStack()
        self._signals: SignalPipe | None = None
        self._raw: RawTerminal | None = None
        self._started = False
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
            self.close()
            raise BangerError(ErrorCode.INVALID_ARGUMENT, str(error)) from None
        try:
            with self._stack:
                return self._exchange(request)
        finally:
            if self._started and not self._ended:
                hang_up(self._connection)
            self.close()

    def _asked(self) -> None:
        """Signals and the terminal while the guest starts the command: it need not wait for that."""
        numbers = (*FORWARDED, *OF_A_TERMINAL) if self._terminal else FORWARDED
        self._signals = self._stack.enter_context(SignalPipe(numbers))
        if self._terminal and self._stdin is not None:
            self._raw = self._stack.enter_context(RawTerminal(self._stdin))

    # what the agent says

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == wire.FRAME_STARTED:
            self._started = True
            if self._terminal and window_size(*self._size_of) != self._size:
                self._send_size()  # it changed before we heard of such changes
        elif kind == wire.FRAME_EXIT:
            fields = Fields(payload)
            number = fields.number(wire.EXIT_SIGNAL)
            self._ended = True
            self._status = (SIGNAL_BASE + number if number else fields.number(wire.EXIT_CODE)) & 0xFF

    def _refusal(self, fields: Fields) -> BangerError:
        return not_started(fields)

    def _lost(self, error: Exception | None) -> None:
        if not self._started:
            super()._lost(error)
        raise GuestUnreachable(
            "the connection to the guest broke before the command ended",
            details=str(error) if error else None,
            hint="`banger vm list` shows whether the VM still runs",
        )

    # what we say

    def _watched(self) -> tuple[int, ...]:
        signals = self._signals.fd if self._signals is not None else -1
        companion = self._companion.fd if self._companion is not None else -1
        return tuple(fd for fd in (signals, companion) if fd >= 0)

    def _woken(self, ready: dict[int, int]) -> None:
        if self._signals is not None and self._signals.fd in ready:
            self._forward(self._signals.read())
        if self._companion is not None:
            if self._companion.fd in ready:
                self._companion.readable()
            self._companion.tick()

    def _may_read_stdin(self, descriptor: int) -> bool:
        if not self._started or (self._stdin_is_terminal and is_background(descriptor)):
            return False
        return super()._may_read_stdin(descriptor)

    def _typed(self, data: bytes) -> None:
        self._send_stdin(data)

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
                self._status, self._dropping = SIGNAL_BASE + number, True
                return
            self._send(wire.encode_signal(number))

    def _stopped_or_continued(self, number: int) -> None:
        """By a signal from elsewhere (Ctrl-Z is the guest's): who looks meanwhile gets a usable terminal."""
        if number == signal.SIGTSTP:
            if self._raw is not None:
                self._raw.leave()
            stop_process()
        if self._raw is not None:
            self._raw.enter()
        self._send_size()

    def _send_size(self) -> None:
        self._size = window_size(*self._size_of)
        self._send(wire.encode_resize(*self._size))
