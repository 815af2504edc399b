"""The caller's terminal and signals while a guest's command has them. Everything is put back on leaving.

Imported only by commands that run something in a guest.
"""

from __future__ import annotations

import errno
import os
import signal
import termios
from types import FrameType
from typing import Any

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Sent on to the guest's command. In raw mode the keys for them never become signals here."""


OF_A_TERMINAL = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
"""Besides, where the guest's command has our terminal."""


class RawTerminal:
    """Raw mode on the terminal `descriptor` inside the context; nothing where it is no terminal.

    leave() and enter() for the time in which the process is stopped; both may be called twice.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before: list[Any] | None = None

    def __enter__(self) -> RawTerminal:
        self.enter()
        return self

    def enter(self) -> None:
        """In the background this stops the process, as any use of the terminal does, until it is in front."""
        if not os.isatty(self._descriptor):
            return
        before = self._before or termios.tcgetattr(self._descriptor)
        raw: list[Any] = termios.tcgetattr(self._descriptor)
        # as cfmakeraw(3)
        raw[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        raw[1] &= ~termios.OPOST
        raw[2] = (raw[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        self._before = before
        while True:
            try:
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, raw)
                return
            except termios.error as error:
                if error.args[0] != errno.EINTR:
                    raise

    def __exit__(self, *_exc: object) -> None:
        self.leave()

    def leave(self) -> None:
        if self._before is None:
            return
        try:
            # a background process that sets attributes is stopped by SIGTTOU: it must not be, here
            held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            try:
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
        except termios.error:
            pass  # the terminal has gone
        self._before = None


def window_size(*descriptors: int) -> tuple[int, int]:
    """(rows, columns) of the first that is a terminal; 24 by 80 where none is."""
    for descriptor in descriptors:
        try:
            size = os.get_terminal_size(descriptor)
        except OSError:
            continue
        return size.lines or 24, size.columns or 80
    return 24, 80


def is_background(descriptor: int) -> bool:
    """Whether reading this terminal would stop us (a job in the background)."""
    try:
        return os.tcgetpgrp(descriptor) != os.getpgrp()
    except OSError:
        return False


def stop_process() -> None:
    """As SIGTSTP does it that nobody handles; returns when we go on."""
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)


class SignalPipe:
    """Signals as bytes on a descriptor, for a poll loop. A context manager; one at a time."""

    def __init__(self, numbers: tuple[signal.Signals, ...]) -> None:
        self._numbers = numbers
        self._before: dict[signal.Signals, Any] = {}
        self.fd = -1
        self._write_end = -1
        self._wakeup_before = -1

    def __enter__(self) -> SignalPipe:
        self.fd, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in self._numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                self._before[number] = signal.signal(number, _noted)
        return self

    def read(self) -> list[int]:
        """The signals since the last read, in order."""
        try:
            return list(os.read(self.fd, 512))
        except BlockingIOError:
            return []

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self.fd)
        os.close(self._write_end)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor has told the loop already."""
