"""A person at a terminal: a pseudo-terminal with a screen (pyte) that can be read, and keys to type."""

from __future__ import annotations

import os
import pty
import select
import signal
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyte

ROWS, COLUMNS = 24, 80
TIMEOUT_S = 240.0
"""Guests are emulated, and a neighbour may be busy."""


class _Screen(pyte.Screen):
    def __init__(self, fd: int) -> None:
        super().__init__(COLUMNS, ROWS)
        self._fd = fd
        self._drawing = False
        self.goes_on: set[int] = set()
        """Rows that were full and go on in the next one."""

    def draw(self, data: str) -> None:
        self._drawing = True
        super().draw(data)
        self._drawing = False

    def linefeed(self) -> None:
        """One of the text's own, or one by which a full row goes on."""
        (self.goes_on.add if self._drawing else self.goes_on.discard)(self.cursor.y)
        super().linefeed()

    def write_process_input(self, data: str) -> None:
        """Answers to what programs ask a terminal."""
        os.write(self._fd, data.encode())

    def select_graphic_rendition(self, *attrs: int, private: bool = False) -> None:
        """With `>` it is no colour but how keys are sent, which pyte takes for one (vim asks for it)."""
        if not private:
            super().select_graphic_rendition(*attrs)


class Screen:
    """pid: the program's; fd: our end of its terminal."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.fd = fd
        self._screen = _Screen(fd)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    def whole_lines(self, first: int = 0) -> list[str]:
        """From row `first` on, as they were written: what was wrapped is one. Right while nothing scrolls."""
        found = [""]
        for row, text in enumerate(self._screen.display):
            if row < first:
                continue
            found[-1] += text
            if row not in self._screen.goes_on:
                found.append("")
        return [line.rstrip() for line in found[:-1]]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def title(self) -> str:
        """What a program gave the window as its title."""
        return str(self._screen.title)

    @property
    def cursor(self) -> tuple[int, int]:
        """(row, column) from 0."""
        return self._screen.cursor.y, self._screen.cursor.x

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        """As a window does it: the terminal's size, and with it SIGWINCH for whoever is in front."""
        self._screen.resize(rows, columns)
        termios.tcsetwinsize(self.fd, (rows, columns))

    def until(self, wanted: str | Callable[[], bool], *, timeout_s: float = TIMEOUT_S) -> None:
        """Look until the screen has the text, or the condition holds."""
        deadline = time.monotonic() + timeout_s
        while not (wanted in self.text if isinstance(wanted, str) else wanted()):
            left = deadline - time.monotonic()
            assert left > 0, f"{wanted!r} is not on the screen:\n{self.text}"
            if select.select([self.fd], [], [], min(left, 0.5))[0]:
                assert self._read(), f"{wanted!r} was not on the screen at the end:\n{self.text}"

    def _read(self) -> bool:
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # EIO: nobody has the terminal any more
            return False
        self._stream.feed(data)
        return bool(data)

    def status(self, timeout_s: float = TIMEOUT_S) -> int:
        """The program's exit status (128+n for a signal), once it has ended; its output is read meanwhile."""
        deadline = time.monotonic() + timeout_s
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                while select.select([self.fd], [], [], 0)[0] and self._read():
                    pass
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            assert time.monotonic() < deadline, f"it does not end:\n{self.text}"
            if select.select([self.fd], [], [], 0.1)[0] and not self._read():
                time.sleep(0.05)


@contextmanager
def at_a_terminal(argv: Sequence[str], env: Mapping[str, str]) -> Iterator[Screen]:
    """The program on a terminal of its own; killed at the end, if it has not ended."""
    pid, fd = pty.fork()
    if not pid:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored by what a shell starts in the background
        os.execvpe(argv[0], list(argv), dict(env))
    screen = Screen(pid, fd)
    try:
        screen.resize(ROWS, COLUMNS)
        yield screen
    finally:
        os.close(fd)
        if screen.pid:
            os.kill(screen.pid, signal.SIGKILL)
            os.waitpid(screen.pid, 0)
