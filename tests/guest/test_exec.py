"""`vm exec` as docker's own documentation uses `docker exec`, and its streams and ends, on a real guest."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess

import pytest

from tests.guest.instance import Instance, until

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def mycontainer(banger: Instance) -> str:
    banger.ok("vm", "run", "--name", "mycontainer", "-d")
    return "mycontainer"


def test_dockers_own_list(banger: Instance, mycontainer: str) -> None:
    """The commands of its reference, word for word but for `docker` → `banger vm`."""

    def docker(line: str, stdin: bytes = b"") -> str:
        return banger.ok("vm", *line.split(), stdin=stdin).text

    assert docker("exec -d mycontainer touch /tmp/execWorks") == ""
    until(lambda: "execWorks" in docker("exec mycontainer ls /tmp").split(), timeout_s=60)
    assert "42" in docker("exec -it mycontainer sh", b"echo $((6 * 7))\nexit\n")
    seen = docker("exec -e VAR_A=1 -e VAR_B=2 mycontainer env").splitlines()
    assert {"VAR_A=1", "VAR_B=2", "HOME=/root"} <= set(seen)
    assert docker("exec -it mycontainer pwd").strip() == "/root"
    assert docker("exec -it -w /root mycontainer pwd").strip() == "/root"
    assert docker("exec -it --workdir /tmp mycontainer pwd").strip() == "/tmp"
    assert docker("exec --user nobody:nogroup mycontainer id -un").strip() == "nobody"
    assert docker("exec -i mycontainer cat", b"piped") == "piped"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("no-such-program",), 127, "no-such-program: No such file or directory"),
        (("/etc/passwd",), 126, "/etc/passwd: Permission denied"),
        (("sh", "-c", "kill -TERM $$"), 143, ""),
        (("sh", "-c", "exit 200"), 200, ""),
    ],
)
def test_statuses(banger: Instance, mycontainer: str, words: tuple[str, ...], status: int, said: str) -> None:
    result = banger.banger("vm", "exec", mycontainer, *words)
    assert (result.status, result.stderr) == (status, f"banger: {said}\n" if said else "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-u", "nobody-here"), "no such user or group: nobody-here"),
        (("-w", "/nowhere"), "/nowhere: No such file or directory"),
        (("-w", "/etc/passwd"), "/etc/passwd: Not a directory"),
    ],
)
def test_who_and_where_that_are_not_there(
    banger: Instance, mycontainer: str, words: tuple[str, ...], said: str
) -> None:
    result = banger.banger("vm", "exec", *words, mycontainer, "true")
    assert result.status == 125
    assert result.stderr.startswith(f"banger: {said}\n")


def test_32_mib_both_ways_at_once(banger: Instance, mycontainer: str) -> None:
    data = os.urandom(32 << 20)
    there = banger.ok("vm", "exec", "-i", mycontainer, "sha256sum", stdin=data).text.split()[0]
    assert there == hashlib.sha256(data).hexdigest()
    back = banger.ok("vm", "exec", "-i", mycontainer, "sh", "-c", "tee /dev/null", stdin=data).stdout
    assert hashlib.sha256(back).hexdigest() == there


def test_half_close_and_slow_readers(banger: Instance, mycontainer: str) -> None:
    """End of file on stdin is one for the command, whose output still comes; a reader may take its time."""
    script = "wc -c; seq 1 600000; : >/tmp/all-written"
    with banger.start("vm", "exec", mycontainer, "sh", "-c", script, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"x" * 100_000)
        child.stdin.close()
        assert child.stdout.readline() == b"100000\n"
        probe = ("vm", "exec", mycontainer, "test", "-e", "/tmp/all-written")
        assert banger.banger(*probe).status == 1, "4 MB do not fit on the way"
        rest = child.stdout.read()
        assert child.wait(60) == 0
    assert rest == b"".join(b"%d\n" % number for number in range(1, 600_001))


def test_signals_reach_the_command(banger: Instance, mycontainer: str) -> None:
    script = "trap 'echo got; exit 9' INT; echo up; while :; do sleep 0.1; done"
    with banger.start("vm", "exec", mycontainer, "sh", "-c", script) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == b"got\n"
        assert child.wait(60) == 9


def test_a_killed_cli_is_a_hangup(banger: Instance, mycontainer: str) -> None:
    # stderr is gone by then: the shell's own "Hangup" about its sleep there would be a SIGPIPE
    script = "exec 2>&-; trap 'touch /tmp/hung-up; exit' HUP; echo up; while :; do sleep 0.1; done"
    with banger.start("vm", "exec", mycontainer, "sh", "-c", script) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.kill()
    until(
        lambda: not banger.banger("vm", "exec", mycontainer, "test", "-e", "/tmp/hung-up").status,
        timeout_s=60,
    )


def test_detached_goes_on_after_its_caller(banger: Instance, mycontainer: str) -> None:
    script = "sleep 2; echo $A $PWD >/tmp/late.new; mv /tmp/late.new /tmp/late"
    banger.ok("vm", "exec", "-d", "-e", "A=1", "-w", "/usr", mycontainer, "sh", "-c", script)

    def late() -> str:
        return banger.banger("vm", "exec", mycontainer, "cat", "/tmp/late").text

    assert until(late, timeout_s=60) == "1 /usr\n"
    assert banger.banger("vm", "exec", "-d", mycontainer, "no-such-program").status == 127
    until(
        lambda: "Z" not in banger.ok("vm", "exec", mycontainer, "ps", "-eo", "stat=").text, timeout_s=60
    )  # whoever was left behind is reaped


def test_exec_goes_on_without_a_daemon(banger: Instance, mycontainer: str) -> None:
    with banger.start("vm", "exec", mycontainer, "cat", stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"before\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"before\n"
        os.kill(banger.daemon_pid(), signal.SIGKILL)
        child.stdin.write(b"after\n")
        child.stdin.close()
        assert child.stdout.readline() == b"after\n"
        assert child.wait(60) == 0


def test_a_stopped_vm_is_refused_and_one_that_dies_says_so(banger: Instance) -> None:
    banger.ok("vm", "run", "--name", "mortal", "-d")
    with banger.start("vm", "exec", "mortal", "sh", "-c", "echo up; sleep 1000") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"up\n"
        banger.ok("vm", "kill", "--signal", "KILL", "mortal")
        assert child.wait(60) == 125
        assert child.stderr.read().startswith(b"banger: the connection to the guest broke")
    refused = banger.banger("vm", "exec", "mortal", "true")
    assert refused.status == 125
    assert refused.stderr == "banger: VM mortal is not running: it is stopped\n  banger vm start mortal\n"
    banger.ok("vm", "delete", "mortal")
