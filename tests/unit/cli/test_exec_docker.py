"""What docker's own documentation shows of `docker exec`, and other uses of terminals and streams."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.unit.cli.conftest import CLI, Instance, eventually
from tests.unit.cli.terminals import on_a_terminal, program_on_a_terminal, read_until


@pytest.fixture(scope="module")
def vm(banger: Instance) -> str:
    banger("vm", "create", "--name", "mycontainer")
    return "mycontainer"


def test_dockers_examples(banger: Instance, vm: str, tmp_path: Path) -> None:
    made = tmp_path / "execWorks"
    assert banger("vm", "exec", "-d", vm, "touch", str(made)).stdout == b""
    eventually(made.exists)
    lines = banger("vm", "exec", "-e", "VAR_A=1", "-e", "VAR_B=2", vm, "env").stdout.decode().splitlines()
    assert {"VAR_A=1", "VAR_B=2"} <= set(lines)
    assert any(line.startswith("PATH=") for line in lines)
    assert banger("vm", "exec", "-it", "-w", "/usr", vm, "pwd").stdout == b"/usr\r\n"
    assert banger("vm", "exec", "-i", vm, "cat", stdin=b"in").stdout == b"in"


def test_env_file_as_docker_reads_it(banger: Instance, vm: str, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes(b'\xef\xbb\xbfA="quoted"\r\n  B=ends with a space \n#C=1\n\nD=a=b#c\nALONG\nABSENT\n')
    done = banger("vm", "exec", "--env-file", str(file), vm, "env", ALONG="mine")
    lines = done.stdout.decode().splitlines()
    assert {'A="quoted"', "B=ends with a space ", "D=a=b#c", "ALONG=mine"} <= set(lines)
    assert not any(line.startswith(("C=", "ABSENT")) for line in lines)
    for bad in (b"=x\n", b"WITH SPACE=1\n"):
        file.write_bytes(bad)
        failed = banger("vm", "exec", "--env-file", str(file), vm, "env", status=125)
        assert f"{file}:1:".encode() in failed.stderr


def test_detached(banger: Instance, vm: str, tmp_path: Path) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    script = f"while test ! -e {go}; do sleep 0.05; done; test ! -t 0; "
    script += f"echo $A $PWD $? >{log}.new; cat >>{log}.new; mv {log}.new {log}"
    banger("vm", "exec", "-dit", "-e", "A=1", "-w", "/usr", vm, "sh", "-c", script, stdin=b"not read")
    go.touch()
    eventually(log.exists)
    assert log.read_text() == "1 /usr 0\n"
    assert b"no-such-program" in banger("vm", "exec", "-d", vm, "no-such-program", status=127).stderr
    assert banger("vm", "exec", "-d", vm, "/etc/passwd", status=126).stderr
    assert b"/no/such" in banger("vm", "exec", "-d", "-w", "/no/such", vm, "true", status=125).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-u", "nobody-of-this-name"], b"no such user or group: nobody-of-this-name"),
        (["-u", "root:nogroup-of-this-name"], b"no such user or group: root:nogroup-of-this-name"),
        (["-w", "/no/such/folder"], b"/no/such/folder: No such file or directory"),
        (["-w", "/etc/passwd"], b"/etc/passwd: Not a directory"),
    ],
)
def test_who_and_where_that_are_not_there(banger: Instance, vm: str, words: list[str], said: bytes) -> None:
    done = banger("vm", "exec", *words, vm, "true", status=125)
    assert done.stderr.startswith(b"banger: " + said), done.stderr


def test_a_slow_reader_gets_all_and_holds_the_command_back(banger: Instance, vm: str, tmp_path: Path) -> None:
    done = tmp_path / "done"
    with banger.popen("vm", "exec", vm, "sh", "-c", f"seq 1 2000000; : >{done}") as child:
        assert child.stdout is not None
        first = child.stdout.read(1000)
        time.sleep(1)
        assert not done.exists(), "14 MB do not fit on the way"
        rest = child.stdout.read()
        assert child.wait(60) == 0
    assert first + rest == b"".join(b"%d\n" % number for number in range(1, 2000001))


def test_output_to_a_socket_and_to_a_closed_descriptor(banger: Instance, vm: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, banger.popen("vm", "exec", vm, "seq", "200000", stdout=theirs.fileno()) as child:
        theirs.close()
        received = b"".join(iter(lambda: ours.recv(1 << 16), b""))
        assert child.wait(60) == 0
    assert received == b"".join(b"%d\n" % number for number in range(1, 200001))
    words = [sys.executable, "-I", CLI, "vm", "exec", vm, "sh", "-c", "cat; echo out; exit 4"]
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *words]
        ended = subprocess.run(shell, env=banger.env, capture_output=True, timeout=60, check=False)
        assert ended.returncode == 4, (closed, ended)
        assert ended.stdout == (b"" if ">&-" in closed.replace("2>&-", "") else b"out\n")


def test_standard_output_stays_blocking_for_others(banger: Instance, vm: str) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as file, banger.popen("vm", "exec", vm, "echo", "x", stdout=writer) as child:
        assert child.wait(60) == 0
        assert os.get_blocking(writer)
        os.close(writer)
        assert file.read() == b"x\n"


def test_guest_that_goes_in_the_middle(banger: Instance) -> None:
    banger("vm", "create", "--name", "goes-away")
    with banger.popen("vm", "exec", "goes-away", "sh", "-c", "echo up; sleep 60") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        banger("vm", "stop", "goes-away")
        assert child.wait(60) == 125
        assert child.stderr is not None
        assert child.stderr.read().startswith(
            b"banger: the connection to the guest broke before the command ended\n"
        )
    banger("vm", "delete", "goes-away")


# terminals


def test_terminated_at_a_terminal(banger: Instance, vm: str) -> None:
    """A shell ignores TERM; the CLI that is told to go goes, and puts the terminal back."""
    with on_a_terminal(banger, "vm", "exec", "-it", vm, "sh", "-c", "trap '' TERM; echo up; sleep 60") as (
        pid,
        ours,
    ):
        read_until(ours, b"up")
        assert not termios.tcgetattr(ours)[3] & termios.ECHO
        os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
        assert termios.tcgetattr(ours)[3] & termios.ECHO


def test_keys_that_are_signals_belong_to_the_guest(banger: Instance, vm: str) -> None:
    script = 'for s in INT QUIT TSTP; do trap "echo was $s" $s; done; echo up; while :; do sleep 0.05; done'
    with on_a_terminal(banger, "vm", "exec", "-it", vm, "sh", "-c", script) as (pid, ours):
        read_until(ours, b"up")
        for key, said in ((b"\x03", b"was INT"), (b"\x1c", b"was QUIT"), (b"\x1a", b"was TSTP")):
            os.write(ours, key)
            read_until(ours, said)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)


def test_stopped_and_continued(banger: Instance, vm: str) -> None:
    """As a job of a shell: stopped, the terminal is the shell's; then it is raw again, at its new size."""
    environment = {**banger.env, "PS1": "ready> "}
    with program_on_a_terminal("bash", "--norc", "-i", env=environment) as (shell, ours):
        read_until(ours, b"ready> ")
        script = 'stty size; echo u""p; read x; stty size; echo got $x; exit 7'
        command = f"{sys.executable} -I {CLI} vm exec -it {vm} sh -c '{script}'"
        os.write(ours, command.encode() + b"\r")
        read_until(ours, b"up")
        cli = child_of(shell)
        os.kill(cli, signal.SIGTSTP)
        assert b"Stopped" in read_until(ours, b"ready> ")
        assert termios.tcgetattr(ours)[1] & termios.OPOST
        termios.tcsetwinsize(ours, (33, 77))
        os.write(ours, b"fg; echo status $?\r")
        eventually(lambda: not termios.tcgetattr(ours)[1] & termios.OPOST)
        os.write(ours, b"back\r")
        said = read_until(ours, b"status 7")
        assert b"33 77" in said
        assert b"got back" in said


def child_of(pid: int) -> int:
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(words) == 1, words
    return int(words[0])


# shells


def test_shell_reads_commands_without_a_terminal(banger: Instance, vm: str) -> None:
    done = banger(
        "vm", "shell", vm, "-w", "/usr", "--env", "A=7", stdin=b"pwd\necho $A\ntty\nexit 3\n", status=3
    )
    assert done.stdout.decode().splitlines()[:3] == ["/usr", "7", "not a tty"]


def test_shell_at_a_terminal(banger: Instance, vm: str) -> None:
    with on_a_terminal(banger, "vm", "shell", vm) as (pid, ours):
        eventually(lambda: not termios.tcgetattr(ours)[3] & termios.ECHO)
        os.write(ours, b"test -t 0 && echo $((6 * 7)); exit 5\r")
        read_until(ours, b"42")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 5


@pytest.mark.parametrize(("term", "becomes"), [("xterm", "xterm"), ("no-such-terminal", "xterm-256color")])
def test_terminal_that_the_guest_does_not_know(banger: Instance, vm: str, term: str, becomes: str) -> None:
    done = banger("vm", "shell", "-t", vm, stdin=b"echo is $TERM.\nexit\n", TERM=term)
    assert f"is {becomes}.".encode() in done.stdout


@pytest.mark.parametrize(
    ("lang", "all_of_it", "words", "becomes"),
    [
        ("de_DE.UTF-8", "", [], "C.UTF-8"),
        ("C", "en_GB.utf8", [], "C.UTF-8"),
        ("", "de_DE.ISO-8859-1", [], "unset"),
        ("C.UTF-8", "", ["-e", "LANG=C"], "C"),
    ],
)
def test_a_terminal_in_utf8_is_one_in_the_guest(
    banger: Instance, vm: str, lang: str, all_of_it: str, *, words: list[str], becomes: str
) -> None:
    said = b"echo lang ${LANG-unset}.\nexit\n"
    done = banger("vm", "shell", "-t", *words, vm, stdin=said, LANG=lang, LC_ALL=all_of_it)
    assert f"lang {becomes}.".encode() in done.stdout
