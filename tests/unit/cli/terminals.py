"""The CLI at a pseudo-terminal, and what it shows there."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.unit.cli.conftest import CLI, Instance


@contextmanager
def on_a_terminal(banger: Instance, *argv: str) -> Iterator[tuple[int, int]]:
    """The command on a new pseudo-terminal: (its pid, our end)."""
    with program_on_a_terminal(sys.executable, "-I", CLI, *argv, env=banger.env) as running:
        yield running


@contextmanager
def program_on_a_terminal(*argv: str, env: dict[str, str]) -> Iterator[tuple[int, int]]:
    pid, ours = pty.fork()
    if not pid:
        os.execvpe(argv[0], argv, env)
    try:
        yield pid, ours
    finally:
        os.close(ours)
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def read_until(fd: int, wanted: bytes, timeout_s: float = 60.0) -> bytes:
    said = b""
    deadline = time.monotonic() + timeout_s
    while wanted not in said:
        assert time.monotonic() < deadline, said
        if select.select([fd], [], [], 0.2)[0]:
            try:
                data = os.read(fd, 4096)
            except OSError:
                data = b""
            assert data, said
            said += data
    return said


def read_rest(fd: int) -> bytes:
    """All that was written to a pseudo-terminal whose other end is closed: it comes in pieces."""
    said = b""
    try:
        while data := os.read(fd, 4096):
            said += data
    except OSError:  # the end
        pass
    return said
