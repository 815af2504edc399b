"""`vm run` and `vm exec`: streams, statuses, terminals and signals, against real agents."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import termios
import time
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Instance, eventually
from tests.unit.cli.terminals import on_a_terminal, read_until


@pytest.fixture(scope="module")
def vm(banger: Instance) -> str:
    banger("vm", "create", "--name", "exec-vm")
    return "exec-vm"


def test_run_exits_as_the_command_and_leaves_nothing(banger: Instance) -> None:
    before = banger.ids()
    done = banger("vm", "run", "--rm", "--", "sh", "-c", "echo out; echo err >&2; exit 42", status=42)
    assert done.stdout == b"out\n"
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("spec: 2 vcpu | 2048 MiB")
    assert "err" in lines
    assert any(line.startswith("ready in ") for line in lines)
    assert banger.ids() == before


def test_an_image_runs_as_it_says(banger: Instance) -> None:
    assert banger("vm", "run", "--rm", "--entrypoint").stdout == b"runs: its own\n"
    assert banger("vm", "run", "--rm", "--entrypoint", "--", "mine", "-x").stdout == b"runs: mine -x\n"
    detached = banger("vm", "run", "-d", "--entrypoint", "--name", "in-the-background").stdout
    assert len(detached.strip()) == 64
    banger("vm", "delete", "in-the-background")


def test_quiet_says_nothing_of_its_own(banger: Instance) -> None:
    done = banger("vm", "run", "--rm", "--quiet", "--", "true")
    assert (done.stdout, done.stderr) == (b"", b"")
    assert banger("--quiet", "vm", "run", "--rm", "--", "true").stderr == b""


def test_run_without_rm_leaves_the_vm(banger: Instance) -> None:
    banger("vm", "run", "--name", "stays", "--", "true")
    assert banger("vm", "delete", "stays").stdout == b"stays\n"


def test_detach_prints_the_id_and_how_to_come_back(banger: Instance) -> None:
    done = banger("vm", "run", "-d", "--name", "detached")
    assert done.stdout.decode().strip() in banger.ids()
    assert b"banger vm shell detached" in done.stderr
    banger("vm", "delete", "detached")


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["-d", "--rm"], 2),
        (["-d", "--", "true"], 125),
        (["--", ""][:1], 2),
        (["--vcpu", "0"], 2),
        (["--vcpu", "0", "--", "true"], 125),
        (["--memory", "1"], 2),
        (["--name", "Bad_Name"], 2),
        (["--env", "=x", "--", "true"], 125),
        (["two", "words"], 2),
        (["no-such-folder"], 125),
        (["-d", "/no/such/folder"], 1),
        (["/", "--", "true"], 125),
        (["--branch", "b"], 2),
        (["--dry-run"], 2),
        ([".", "--mode", "all"], 2),
    ],
)
def test_wrong_usage_makes_nothing_and_starts_nothing(fresh: Instance, argv: list[str], status: int) -> None:
    done = fresh("vm", "run", *argv, status=status)
    assert done.stderr.startswith(b"banger: "), done.stderr
    assert not (fresh.home / "run").exists()


def test_stdin_reaches_the_command(banger: Instance, vm: str) -> None:
    assert banger("vm", "exec", vm, "--", "cat", stdin=b"hi\n").stdout == b"hi\n"


def test_a_command_that_does_not_read_its_stdin_still_ends(banger: Instance, vm: str) -> None:
    banger("vm", "exec", vm, "--", "true", stdin=b"x" * (4 << 20))


def test_megabytes_arrive_unchanged(banger: Instance, vm: str) -> None:
    payload = random.Random(7).randbytes(8 << 20)
    done = banger("vm", "exec", vm, "--", "cat", stdin=payload)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(payload).digest()


def test_streams_stay_apart(banger: Instance, vm: str) -> None:
    done = banger("vm", "exec", vm, "--", "sh", "-c", "echo to-out; echo to-err >&2")
    assert (done.stdout, done.stderr) == (b"to-out\n", b"to-err\n")


def test_environment_folder_and_files(banger: Instance, vm: str, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=from file\nB=file\nTAKEN\n")
    done = banger(
        *("vm", "exec", vm, "--env-file", str(file), "--env", "B=option=with=signs", "-w", "/tmp"),
        *("--", "sh", "-c", "echo $A; echo $B; echo $TAKEN; pwd"),
        TAKEN="along",
    )
    assert done.stdout.decode().splitlines() == ["from file", "option=with=signs", "along", "/tmp"]


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
        (["-w", "/no/such/folder", "--", "true"], 125),
    ],
)
def test_statuses(banger: Instance, vm: str, argv: list[str], status: int) -> None:
    words = argv if "--" in argv else ["--", *argv]
    done = banger("vm", "exec", vm, *words, status=status)
    assert done.stderr.startswith(b"banger: ") == (status in (125, 126, 127))


def test_own_failures_are_125(banger: Instance) -> None:
    assert b"no VM is called" in banger("vm", "exec", "nobody", "--", "true", status=125).stderr
    banger("vm", "create", "--no-start", "--name", "asleep")
    done = banger("vm", "exec", "asleep", "--", "true", status=125)
    assert done.stderr == b"banger: VM asleep is not running: it is created\n  banger vm start asleep\n"
    assert banger("vm", "exec", "asleep", status=2).stderr.startswith(b"banger: which command?")
    banger("vm", "delete", "asleep")


def test_signals_go_to_the_command(banger: Instance, vm: str) -> None:
    script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    with banger.popen("vm", "exec", vm, "--", "sh", "-c", script) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == b"got\n"
        assert child.wait(60) == 9


def test_command_ended_by_a_signal_is_128_and_it(banger: Instance, vm: str) -> None:
    with banger.popen("vm", "exec", vm, "--", "sh", "-c", "echo ready; exec sleep 60") as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130


def test_reader_that_goes_away_ends_it(banger: Instance, vm: str) -> None:
    with banger.popen("vm", "exec", vm, "--", "yes") as child:
        assert child.stdout is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.wait(60) == 141


def test_agent_through_the_daemon_where_the_socket_may_not_be_opened(banger: Instance, vm: str) -> None:
    """The guest socket has another name for the CLI than for the daemon: as in another mount namespace."""
    import json

    record = json.loads(banger("vm", "show", vm, "--json").stdout)
    script = (
        "import sys, banger.client.agentconnection as g\n"
        "def refuse(*_): raise PermissionError(13, 'no')\n"
        "g._handshake = refuse\n"
        "from banger.cli.main import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", script, "vm", "exec", record["id"], "--", "cat"],
        env={**banger.env, "PYTHONPATH": str(Path(__file__).parents[3] / "src")},
        input=b"around\n" * 50_000,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"around\n" * 50_000), done.stderr


# terminals


def test_terminal_is_a_terminal_and_is_put_back(banger: Instance, vm: str) -> None:
    script = 'test -t 0 && test -t 1 && echo "is $TERM"; stty size; read line; echo "read $line"; exit 3'
    with on_a_terminal(banger, "vm", "exec", "-t", vm, "--", "sh", "-c", script) as (pid, ours):
        before = termios.tcgetattr(ours)
        read_until(ours, b"is xterm")
        assert not termios.tcgetattr(ours)[3] & termios.ECHO, "raw while it runs"
        os.write(ours, b"typed\r")
        read_until(ours, b"read typed")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 3
        assert termios.tcgetattr(ours) == before


def test_window_changes_reach_the_guest(banger: Instance, vm: str) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    with on_a_terminal(banger, "vm", "exec", "-t", vm, "--", "sh", "-c", script) as (pid, ours):
        read_until(ours, b"ready")
        termios.tcsetwinsize(ours, (41, 99))
        read_until(ours, b"41 99")
        os.write(ours, b"\x03")  # Ctrl-C is the guest's
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 130


def test_terminal_is_put_back_when_the_cli_is_told_to_go(banger: Instance, vm: str) -> None:
    with on_a_terminal(banger, "vm", "exec", "-t", vm, "--", "sleep", "60") as (pid, ours):
        before = termios.tcgetattr(ours)
        eventually(lambda: not termios.tcgetattr(ours)[3] & termios.ECHO)
        os.kill(pid, signal.SIGHUP)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 129
        assert termios.tcgetattr(ours) == before


def test_bare_run_on_a_terminal_is_a_shell(banger: Instance) -> None:
    with on_a_terminal(banger, "vm", "run", "--rm", "--name", "shelly") as (pid, ours):
        read_until(ours, b"ready in ")
        eventually(lambda: not termios.tcgetattr(ours)[3] & termios.ECHO)
        os.write(ours, b"echo $((6 * 7)); exit 5\r")
        read_until(ours, b"42")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 5
    assert b"shelly" not in banger("vm", "list").stdout


# the end of a VM with --rm, and of a boot


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_during_boot_leaves_nothing(slow: Instance, number: signal.Signals) -> None:
    with slow.popen("vm", "run", "--", "true") as child:
        eventually(lambda: bool(slow.ids()))
        while child.poll() is None:  # the impatient change nothing, whenever they come
            child.send_signal(number)
            time.sleep(0.002)
        assert child.returncode == 128 + number
        assert not slow.ids()


def test_killed_cli_leaves_nothing_of_a_boot(slow: Instance) -> None:
    with slow.popen("vm", "run", "--rm", "--", "true") as child:
        eventually(lambda: bool(slow.ids()))
        child.kill()
    eventually(lambda: not slow.ids())


def test_killed_cli_leaves_nothing_of_a_running_vm(banger: Instance) -> None:
    with banger.popen(
        "vm", "run", "--rm", "--name", "doomed", "--", "sh", "-c", "echo up; sleep 60"
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    eventually(lambda: b"doomed" not in banger("vm", "list").stdout)


def test_restarted_daemon_gets_the_lease_back(fresh: Instance) -> None:
    """The fake's VMs are gone with their daemon; that the command runs on and ends by itself is the point."""
    script = "echo up; sleep 2; exit 6"
    with fresh.popen("vm", "run", "--rm", "--", "sh", "-c", script) as child:
        assert child.stdout is not None
        child.stdout.readline()
        pid = fresh.daemon_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert child.wait(60) == 6
