"""`vm session …` through the real CLI and daemon, against a real agent on the host."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import random
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import CLI, Instance, eventually
from tests.unit.cli.terminals import program_on_a_terminal, read_until

TICKS = 'i=0; while :; do i=$((i+1)); echo "line $i"; sleep 0.02; done'


@pytest.fixture(scope="module")
def vm(banger: Instance) -> Iterator[str]:
    """Its sessions end with it: the agent's keepers outlive the agent."""
    banger("vm", "create", "--name", "box")
    yield "box"
    left = banger("vm", "session", "list", "box", "-q").stdout.decode().split()
    if left:
        banger("vm", "session", "rm", "-f", "box", *left)
    banger("vm", "delete", "box")


def show(banger: Instance, vm: str, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(banger("vm", "session", "show", vm, name, "--json").stdout)
    return shown


def until(banger: Instance, vm: str, name: str, status: str) -> dict[str, Any]:
    eventually(lambda: show(banger, vm, name)["status"] == status)
    return show(banger, vm, name)


class Screen:
    """A CLI on a terminal of its own, typed at and read from."""

    def __init__(self, banger: Instance, argv: Sequence[str]) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, "-I", CLI, *argv], banger.env)
        self.shown = b""
        self.status: int | None = None

    def read(self, timeout_s: float) -> bool:
        """False at the end."""
        if not select.select([self.master], [], [], timeout_s)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.shown += data
        return bool(data)

    def until(self, text: bytes, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            assert self.read(0.2), (text, self.shown)
            assert time.monotonic() < deadline, (text, self.shown)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until_answer(self, question: bytes, answer: bytes) -> None:
        """Asked again until it is so: a signal is on its way."""
        deadline = time.monotonic() + 60
        while answer not in self.shown:
            self.type(question)
            self.read(0.3)
            assert time.monotonic() < deadline, (answer, self.shown)

    def end(self, timeout_s: float = 60) -> int:
        deadline = time.monotonic() + timeout_s
        while self.read(0.2):
            assert time.monotonic() < deadline, self.shown
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        return self.status


@contextmanager
def screen(banger: Instance, *argv: str) -> Iterator[Screen]:
    made = Screen(banger, argv)
    try:
        yield made
    finally:
        if made.status is None:
            os.kill(made.pid, signal.SIGKILL)
            os.waitpid(made.pid, 0)
        os.close(made.master)


def test_start_prints_the_id_and_list_shows_it(banger: Instance, vm: str) -> None:
    made = banger(
        "vm", "session", "start", vm, "--name", "hello", "--tag", "role=greeter", "--", "echo", "a b"
    )
    session_id = made.stdout.decode().strip()
    assert re.fullmatch(r"[0-9a-f]{32}", session_id)
    until(banger, vm, "hello", "exited")
    table = banger("vm", "session", "list", vm).stdout.decode().splitlines()
    assert table[0].split() == ["ID", "NAME", "STATUS", "EXIT", "COMMAND", "CREATED"]
    row = next(line for line in table if " hello " in line)
    assert row.startswith(session_id[:12])
    assert re.search(r"exited +0 +echo 'a b' +\d+ (second|minute)s? ago", row)
    assert (
        banger("vm", "session", "list", vm, "-q", "--tag", "role=greeter").stdout.decode()
        == f"{session_id}\n"
    )
    assert banger("vm", "session", "list", vm, "-q", "--tag", "role=other").stdout == b""
    shown = show(banger, vm, session_id[:10])
    assert (shown["id"], shown["exit_code"], shown["args"]) == (session_id, 0, ["a b"])
    assert b"launch" in banger("vm", "session", "show", vm, "hello").stdout
    assert banger("vm", "session", "logs", vm, "hello").stdout == b"a b\n"


def test_names_are_unique_and_made_up(banger: Instance, vm: str) -> None:
    first = banger("vm", "session", "start", vm, "--json", "--", "true")
    assert json.loads(first.stdout)["name"]
    banger("vm", "session", "start", vm, "--name", "one", "--", "true")
    taken = banger("vm", "session", "start", vm, "--name", "one", "--", "true", status=1)
    assert taken.stderr.startswith(b"banger: a session named one exists already in box\n  choose another")


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["start", "box"], 2),
        (["start", "box", "--name", "Bad_Name", "--", "true"], 125),
        (["start", "box", "--detach-keys", "nope", "--", "true"], 125),
        (["start", "box", "--tag", "=x", "--", "true"], 1),
        (["attach", "box", "no-such"], 125),
        (["attach", "box", "no-such", "--from-start", "--no-replay"], 2),
        (["send", "box", "no-such"], 2),
        (["signal", "box", "no-such", "-s", "NOPE"], 1),
        (["stop", "box"], 2),
        (["stop", "box", "x", "-t", "-1"], 2),
        (["logs", "no-such-vm", "x"], 1),
    ],
)
def test_wrong_usage(banger: Instance, vm: str, argv: list[str], status: int) -> None:
    done = banger("vm", "session", *argv, status=status)
    assert done.stderr.startswith(b"banger: ")
    assert b"Traceback" not in done.stderr


def test_environment_folder_and_streams(banger: Instance, vm: str) -> None:
    script = "echo $A; pwd; echo oh >&2; exit 3"
    argv = (
        "vm",
        "session",
        "start",
        "-e",
        "A=b c",
        "-w",
        "/tmp",
        vm,
        "--name",
        "env",
        "--",
        "sh",
        "-c",
        script,
    )
    banger(*argv)
    assert until(banger, vm, "env", "exited")["exit_code"] == 3
    logs = banger("vm", "session", "logs", vm, "env")
    assert (logs.stdout, logs.stderr) == (b"b c\n/tmp\n", b"oh\n")
    only = banger("vm", "session", "logs", "--stderr", vm, "env")
    assert (only.stdout, only.stderr) == (b"", b"oh\n")
    assert banger("vm", "session", "logs", "--tail", "1", "--stdout", vm, "env").stdout == b"/tmp\n"


def test_a_command_that_is_not_there(banger: Instance, vm: str) -> None:
    done = banger("vm", "session", "start", vm, "--name", "absent", "--", "no-such-program", status=1)
    assert done.stdout == b""
    assert b"banger: session absent: " in done.stderr
    assert b"no-such-program" in done.stderr
    assert b"  banger vm session show box absent\n" in done.stderr
    shown = show(banger, vm, "absent")
    assert (shown["status"], shown["launch_stage"]) == ("failed", "exec")
    assert b"no-such-program" in banger("vm", "session", "show", vm, "absent").stdout
    refused = banger("vm", "session", "attach", vm, "absent", status=125)
    assert b"has nothing to attach to" in refused.stderr
    nowhere = banger(
        "vm", "session", "start", "-w", "/no/such", vm, "--name", "nowhere", "--", "true", status=1
    )
    assert b"/no/such" in nowhere.stderr
    assert show(banger, vm, "nowhere")["launch_stage"] == "cwd"


@pytest.mark.parametrize(("program", "status"), [("no-such-program", 127), ("/etc/passwd", 126)])
def test_start_and_attach_fails_as_exec_does(banger: Instance, vm: str, program: str, status: int) -> None:
    name = f"fails-{status}"
    done = banger("vm", "session", "start", "--attach", vm, "--name", name, "--", program, status=status)
    assert done.stdout == b""
    assert program.encode() in done.stderr
    assert show(banger, vm, name)["exit_code"] == status


def test_start_and_attach_is_as_a_command(banger: Instance, vm: str) -> None:
    done = banger(
        *("vm", "session", "start", "-i", "--attach", vm, "--name", "piped", "--"),
        *("sh", "-c", "cat; echo err >&2; exit 9"),
        stdin=b"through\n",
        status=9,
    )
    assert (done.stdout, done.stderr) == (b"through\n", b"err\n")
    banger("vm", "session", "start", "--attach", vm, "--", "sh", "-c", "kill -9 $$", status=137)


def test_megabytes_come_through_attach_unchanged(banger: Instance, vm: str) -> None:
    data = random.Random(3).randbytes(8 << 20)
    done = banger("vm", "session", "start", "-i", "--attach", vm, "--name", "bulk", "--", "cat", stdin=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    logs = banger("vm", "session", "logs", vm, "bulk")
    assert hashlib.sha256(logs.stdout).digest() == hashlib.sha256(data).digest()
    assert banger("vm", "session", "attach", vm, "bulk").stdout == b"", "it was all seen"
    assert banger("vm", "session", "attach", "--from-start", vm, "bulk").stdout == data


def test_detached_and_attached_again_nothing_is_missing_or_twice(banger: Instance, vm: str) -> None:
    banger("vm", "session", "start", vm, "--name", "ticks", "--", "sh", "-c", TICKS)
    seen = b""
    for _ in range(3):
        with screen(banger, "vm", "session", "attach", vm, "ticks") as terminal:
            terminal.until(b"line")
            time.sleep(0.1)
            terminal.type(b"\x10\x11")
            assert terminal.end() == 0
            text, _, notice = terminal.shown.partition(b"detached: ")
            assert b"ticks goes on" in notice
            seen += text.replace(b"\r\n", b"\n")
    with banger.popen("vm", "session", "attach", "--no-stdin", vm, "ticks") as child:
        assert child.stdout is not None
        seen += child.stdout.readline() + child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        seen += child.stdout.read()
        assert child.wait(60) == 128 + signal.SIGTERM
    banger("vm", "session", "stop", vm, "ticks")
    seen += banger("vm", "session", "attach", vm, "ticks", status=None).stdout
    lines = seen.decode().splitlines()
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
    assert banger("vm", "session", "logs", vm, "ticks").stdout == seen


def test_a_killed_daemon_is_not_noticed_by_who_is_attached(banger: Instance, vm: str) -> None:
    banger("vm", "session", "start", vm, "--name", "steady", "--", "sh", "-c", TICKS)
    with banger.popen("vm", "session", "attach", vm, "steady") as child:
        assert child.stdout is not None
        child.stdout.readline()
        pid = banger.daemon_pid()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # its fake VMs would be gone with it; stopped, it serves nobody, too
        try:
            for _ in range(50):
                assert child.stdout.readline().startswith(b"line ")
        finally:
            os.kill(pid, signal.SIGCONT)
        child.terminate()
        child.stdout.read()
    banger("vm", "session", "rm", "-f", vm, "steady")


def test_through_the_daemon_where_the_socket_may_not_be_opened(banger: Instance, vm: str) -> None:
    script = (
        "import sys, banger.client.agentconnection as g\n"
        "def refuse(*_): raise PermissionError(13, 'no')\n"
        "g._handshake = refuse\n"
        "from banger.cli.main import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "vm", "session", "start", "-i", "--attach", vm, "--", "cat"],
        env={**banger.env, "PYTHONPATH": str(Path(__file__).parents[3] / "src")},
        input=b"around\n" * 50_000,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == b"around\n" * 50_000


def test_a_terminal_session_is_typed_at_left_and_found_again(banger: Instance, vm: str) -> None:
    with screen(
        banger, "vm", "session", "start", "-t", "--attach", vm, "--name", "shell", "--", "sh"
    ) as terminal:
        terminal.until(b"# " if os.getuid() == 0 else b"$ ")
        terminal.type(b"echo $((6*7))\r")
        terminal.until(b"42\r\n")
        terminal.type(b"X=\x10still-here\r\x10\x11")  # a ctrl-p that was none of the keys goes on
        assert terminal.end() == 0
    with screen(banger, "vm", "session", "attach", vm, "shell") as terminal:
        terminal.type(b"\recho [$X] $(stty size)\r")
        terminal.until(b"still-here] 24 80")
        terminal.resize(40, 100)
        terminal.until_answer(b"stty size\r", b"40 100")
        with screen(banger, "vm", "session", "attach", "--from-start", vm, "shell") as second:
            second.until(b"another one writes to shell: this attachment only reads")
            second.until(b"42\r\n")
            refused = banger("vm", "session", "send", vm, "shell", "x", status=1)
            assert refused.stderr.startswith(b"banger: ")
            assert show(banger, vm, "shell")["readers"] == 2
            second.type(b"\x10\x11")
            assert second.end() == 0
        terminal.type(b"exit 5\r")
        assert terminal.end() == 5
    assert until(banger, vm, "shell", "exited")["exit_code"] == 5
    banger("vm", "session", "attach", vm, "shell", status=5)


def test_an_attachment_that_is_stopped_leaves_a_usable_terminal(banger: Instance, vm: str) -> None:
    banger(
        "vm", "session", "start", "-t", vm, "--name", "job", "--", "sh", "-c", 'read x; echo "got $x"; exit 7'
    )
    environment = {**banger.env, "PS1": "ready> "}
    with program_on_a_terminal("bash", "--norc", "-i", env=environment) as (shell, ours):
        read_until(ours, b"ready> ")
        command = f"{sys.executable} -I {CLI} vm session attach {vm} job"
        os.write(ours, command.encode() + b"\r")
        eventually(lambda: not termios.tcgetattr(ours)[1] & termios.OPOST)
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTSTP)
        assert b"Stopped" in read_until(ours, b"ready> ")
        assert termios.tcgetattr(ours)[1] & termios.OPOST
        os.write(ours, b"fg; echo status $?\r")
        eventually(lambda: not termios.tcgetattr(ours)[1] & termios.OPOST)
        os.write(ours, b"back\r")
        assert b"got back" in read_until(ours, b"status 7")


def test_send_until_the_end_of_file(banger: Instance, vm: str) -> None:
    banger("vm", "session", "start", "-i", vm, "--name", "sums", "--", "sha256sum")
    data = random.Random(5).randbytes(1 << 20)
    banger("vm", "session", "send", vm, "sums", "text")
    banger("vm", "session", "send", "--no-newline", vm, "sums", "more")
    banger("vm", "session", "send", vm, "sums", "-", stdin=data)
    banger("vm", "session", "send", "--eof", vm, "sums")
    until(banger, vm, "sums", "exited")
    expected = hashlib.sha256(b"text\nmore" + data).hexdigest()
    assert banger("vm", "session", "logs", vm, "sums").stdout.decode() == f"{expected}  -\n"
    assert b"banger: " in banger("vm", "session", "send", vm, "sums", "late", status=1).stderr
    banger("vm", "session", "start", vm, "--name", "deaf", "--", "sleep", "60")
    closed = banger("vm", "session", "send", vm, "deaf", "x", status=1)
    assert b"stdin closed\n  banger vm session start -i" in closed.stderr


def test_several_are_signalled_stopped_and_removed(banger: Instance, vm: str) -> None:
    script = "trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done"
    for name in ("a1", "a2"):
        banger("vm", "session", "start", vm, "--name", name, "--", "sh", "-c", script)
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    banger("vm", "session", "start", vm, "--name", "a3", "--", "sh", "-c", stubborn)
    for name in ("a1", "a2", "a3"):
        eventually(lambda name=name: b"ready" in banger("vm", "session", "logs", vm, name).stdout)  # type: ignore[misc]
    some = banger("vm", "session", "signal", "-s", "USR1", vm, "a2", "missing", "a1", "a2", status=1)
    assert some.stdout == b"a2\na1\n", "in the order given, once"
    assert b"no session is called 'missing'" in some.stderr
    eventually(lambda: b"usr1" in banger("vm", "session", "logs", vm, "a1").stdout)
    assert b"in_use" not in banger("vm", "session", "rm", vm, "a1", status=1).stderr
    banger("vm", "session", "stop", "-t", "3", vm, "a1", "a2", "a3")
    assert [show(banger, vm, name)["exit_code"] for name in ("a1", "a2", "a3")] == [143, 143, 137]
    assert banger("vm", "session", "stop", vm, "a1").stdout == b"a1\n", "no error when it has ended"
    assert b"banger: " in banger("vm", "session", "signal", vm, "a1", status=1).stderr
    banger("vm", "session", "rm", vm, "a1", "a2", "a3")
    names = {one["name"] for one in json.loads(banger("vm", "session", "list", vm, "--json").stdout)}
    assert not names & {"a1", "a2", "a3"}


def test_following_logs_end_with_the_session(banger: Instance, vm: str) -> None:
    script = "echo one; sleep 1; echo two"
    banger("vm", "session", "start", vm, "--name", "follow", "--", "sh", "-c", script)
    assert banger("vm", "session", "logs", "-f", vm, "follow").stdout == b"one\ntwo\n"


def test_names_are_completed(banger: Instance, vm: str) -> None:
    banger("vm", "session", "start", vm, "--name", "complete-me", "--", "true")
    done = banger(
        status=None,
        _BANGER_COMPLETE="bash_complete",
        COMP_LINE=f"banger vm session show {vm} comp",
    )
    assert b"complete-me" in done.stdout, done


def test_a_stopped_vm_says_what_to_do(banger: Instance) -> None:
    banger("vm", "create", "--no-start", "--name", "still")
    done = banger("vm", "session", "list", "still", status=1)
    assert done.stderr == b"banger: VM still is not running: it is created\n  banger vm start still\n"
    banger("vm", "delete", "still")
