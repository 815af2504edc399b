"""Sessions on a real guest: what outlives a daemon, a terminal and a boot (docs/sessions.md)."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.guest.instance import BANGER, Instance, until

pytestmark = pytest.mark.guest

TICKS = 'i=0; while :; do i=$((i+1)); echo "line $i"; sleep 1; done'
DETACH = b"\x10\x11"


class Screen:
    """A banger command on a terminal of its own."""

    def __init__(self, banger: Instance, *words: str) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            argv = banger.argv(BANGER, *words)
            os.execvpe(argv[0], argv, banger.environment)
        self.shown = b""
        self.over = False

    def until(self, text: bytes, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            assert self.read(), (text, self.shown)
            assert time.monotonic() < deadline, (text, self.shown)

    def read(self) -> bool:
        """False at the end."""
        if not select.select([self.master], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.shown += data
        return bool(data)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self, timeout_s: float = 60) -> int:
        deadline = time.monotonic() + timeout_s
        while self.read():
            assert time.monotonic() < deadline, self.shown
        self.over = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def lines(self) -> list[str]:
        """What the session said: all before banger's own last word."""
        said = self.shown.partition(b"detached: ")[0].decode().replace("\r\n", "\n")
        return said.splitlines()


@contextmanager
def screen(banger: Instance, *words: str) -> Iterator[Screen]:
    made = Screen(banger, *words)
    try:
        yield made
    finally:
        if not made.over:
            os.kill(made.pid, signal.SIGKILL)
            os.waitpid(made.pid, 0)
        os.close(made.master)


def show(banger: Instance, vm: str, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(banger.ok("vm", "session", "show", vm, name, "--json").text)
    return shown


def numbered(count: int) -> list[str]:
    return [f"line {number}" for number in range(1, count + 1)]


@pytest.mark.limit(600)
def test_a_session_outlives_the_daemon_the_terminal_and_tells_what_a_stop_made_of_it(
    banger: Instance, guest: str
) -> None:
    banger.ok("vm", "session", "start", guest, "--name", "ticks", "--", "sh", "-c", TICKS)

    with screen(banger, "vm", "session", "attach", guest, "ticks") as first:
        first.until(b"line 2\r\n")
        pid = banger.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        already = len(first.lines())
        first.until(f"line {already + 3}\r\n".encode())
        assert not os.path.exists(f"/proc/{pid}"), "and no daemon was started for it"
        first.type(DETACH)
        assert first.end() == 0
        seen = first.lines()
    assert seen == numbered(len(seen))

    time.sleep(2)  # it goes on while nobody looks
    with screen(banger, "vm", "session", "attach", guest, "ticks") as second:
        second.until(f"line {len(seen) + 4}\r\n".encode())
        second.type(DETACH)
        assert second.end() == 0
        seen += second.lines()
    assert seen == numbered(len(seen)), "no line is missing, none comes twice"
    assert show(banger, guest, "ticks")["status"] == "running"

    banger.ok("vm", "stop", guest)
    refused = banger.banger("vm", "session", "list", guest)
    assert refused.status == 1
    assert f"  banger vm start {guest}" in refused.stderr
    banger.ok("vm", "start", guest)
    ended = show(banger, guest, "ticks")
    assert ended["status"] in ("exited", "failed")
    assert "exit_code" in ended or ended["last_error"], ended
    kept = banger.ok("vm", "session", "logs", guest, "ticks").text.splitlines()
    assert kept == numbered(len(kept))
    assert len(kept) >= len(seen)
    rest = banger.banger("vm", "session", "attach", guest, "ticks").text.splitlines()
    assert seen + rest == kept
    banger.ok("vm", "session", "rm", guest, "ticks")


def test_a_terminal_session_is_left_and_found_again(banger: Instance, guest: str) -> None:
    with screen(
        banger, "vm", "session", "start", "-t", "--attach", guest, "--name", "shell", "--", "bash"
    ) as terminal:
        terminal.until(b"# ")
        terminal.type(b"tty; echo $((6*7))\r")
        terminal.until(b"/dev/pts/")
        terminal.until(b"42\r\n")
        terminal.type(DETACH)
        assert terminal.end() == 0
    with screen(banger, "vm", "session", "attach", guest, "shell") as terminal:
        terminal.type(b"exit 5\r")
        assert terminal.end() == 5
    assert show(banger, guest, "shell")["exit_code"] == 5
    banger.ok("vm", "session", "rm", guest, "shell")


def test_through_the_daemon_a_killed_one_is_replaced_and_no_line_is_lost(
    banger: Instance, guest: str
) -> None:
    """For a caller that may not open the guest's socket the daemon carries the bytes."""
    script = (
        "import sys, banger.client.agentconnection as g\n"
        "def refuse(*_): raise PermissionError(13, 'no')\n"
        "g._handshake = refuse\n"
        "from banger.cli.main import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    banger.ok("vm", "session", "start", guest, "--name", "carried", "--", "sh", "-c", TICKS)
    words = banger.argv(sys.executable, "-c", script, "vm", "session", "attach", guest, "carried")
    with subprocess.Popen(
        words, env=banger.environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(2)]
        os.kill(banger.daemon_pid(), signal.SIGKILL)
        lines += [child.stdout.readline() for _ in range(4)]
        child.terminate()
        lines += child.stdout.read().splitlines()
        assert child.wait(60) == 128 + signal.SIGTERM
    assert [line.decode().strip() for line in lines] == numbered(len(lines))
    banger.ok("vm", "session", "rm", "-f", guest, "carried")


def test_a_vm_that_is_killed_says_so_of_its_sessions(banger: Instance, guest: str) -> None:
    banger.ok(
        "vm", "session", "start", guest, "--name", "cut", "--", "sh", "-c", "echo begun; exec sleep 600"
    )
    until(lambda: banger.ok("vm", "session", "logs", guest, "cut").text == "begun\n", timeout_s=60)
    banger.ok("vm", "exec", guest, "--", "sync")
    banger.ok("vm", "kill", "--signal", "KILL", guest)
    banger.ok("vm", "start", guest)
    cut = show(banger, guest, "cut")
    assert (cut["status"], "exit_code" in cut) == ("failed", False)
    assert "ended" in cut["last_error"]
    assert banger.ok("vm", "session", "logs", guest, "cut").text == "begun\n"
    banger.ok("vm", "session", "rm", guest, "cut")


def test_running_sessions_are_in_the_health(banger: Instance, guest: str) -> None:
    banger.ok("vm", "session", "start", guest, "--name", "busy", "--", "sleep", "600")
    health = json.loads(banger.ok("vm", "health", guest, "--json").text)
    assert health["running_sessions"] == 1
    stopped = banger.ok("vm", "session", "stop", guest, "busy", "--json").text
    assert json.loads(stopped)[0]["exit_code"] == 143
    banger.ok("vm", "session", "rm", guest, "busy")
