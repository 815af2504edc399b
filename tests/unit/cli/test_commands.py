"""Commands that print and change records: tables, JSON, several references, errors, completion, speed."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Instance, eventually
from tests.unit.cli.terminals import read_rest

ROOT = Path(__file__).parents[3]


def is_alive(pid: int) -> bool:
    """A zombie that nobody collects (a container's pid 1 may not) is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def lines(output: bytes) -> list[str]:
    return output.decode().splitlines()


def test_list_show_and_json(fresh: Instance) -> None:
    assert lines(fresh("vm", "list").stdout) == [
        "ID  NAME  STATE  IMAGE  IP  VCPU  MEM  DISK  WORKSPACE  CREATED"
    ]
    assert fresh("vm", "list", "--json").stdout == b"[]\n"
    vm_id = fresh("vm", "create", "--name", "web", "--vcpu", "3", "--memory", "1G").stdout.decode().strip()
    fresh("vm", "create", "--name", "off", "--no-start")
    table = lines(fresh("vm", "list").stdout)
    assert table[1].split()[:8] == [
        vm_id[:12],
        "web",
        "running",
        "debian-bookworm",
        "172.16.0.2",
        "3",
        "1G",
        "8G",
    ]
    assert len(table) == 3
    assert fresh.ids()[0] == vm_id
    assert len(lines(fresh("ps").stdout)) == len(lines(fresh("vm", "ps").stdout)) == 2
    assert len(lines(fresh("ps", "-a").stdout)) == 3
    (record, _) = json.loads(fresh("vm", "list", "--json").stdout)
    assert record == json.loads(fresh("vm", "show", vm_id[:10], "--json").stdout)
    assert record["runtime"]["state"] == "running"
    shown = dict(line.split("  ", 1) for line in lines(fresh("vm", "show", "web").stdout))
    assert shown["name"].strip() == "web"
    assert shown["memory"].strip() == "1G"


def test_several_references_run_at_once_and_print_in_order(banger: Instance) -> None:
    for name in ("many-a", "many-b", "many-c"):
        banger("vm", "create", "--name", name)
    done = banger("vm", "stop", "many-c", "none", "many-a", "many-c", "many-b", status=1)
    assert lines(done.stdout) == ["many-c", "many-a", "many-b"]
    assert b"banger: no VM is called 'none'" in done.stderr
    assert lines(banger("vm", "start", "many-a", "many-b").stdout) == ["many-a", "many-b"]
    records = json.loads(banger("vm", "restart", "many-a", "--json").stdout)
    assert [record["state"] for record in records] == ["running"]
    assert b"not allowed" in banger("vm", "kill", "-s", "FOO", "many-a", status=1).stderr
    banger("vm", "kill", "many-a")
    banger("vm", "set", "many-b", "--vcpu", "4")
    assert json.loads(banger("vm", "show", "many-b", "--json").stdout)["spec"]["vcpu_count"] == 4
    assert b"nothing to change" in banger("vm", "set", "many-b", status=2).stderr
    assert lines(banger("vm", "delete", "many-a", "many-b", "many-c").stdout) == [
        "many-a",
        "many-b",
        "many-c",
    ]


def test_errors_have_one_line_and_a_hint(banger: Instance) -> None:
    banger("vm", "create", "--name", "once")
    done = banger("vm", "create", "--name", "once", status=1)
    assert done.stdout == b""
    assert done.stderr.decode().splitlines()[-2:] == [
        "banger: a VM called once exists",
        "  choose another name",
    ]
    assert b"code: already_exists" in banger("--debug", "vm", "create", "--name", "once", status=1).stderr
    assert b"no image is called" in banger("vm", "create", "--image", "nope", status=1).stderr
    banger("vm", "delete", "once")


@pytest.mark.parametrize(
    "argv",
    [
        ["vm", "lst"],
        ["nonsense"],
        ["vm", "list", "--nonsense"],
        ["vm", "show"],
        ["vm", "create", "--memory", "12Q"],
        ["vm", "create", "--disk-size", "1M"],
        ["vm", "create", "--init", "systemd"],
        ["vm", "delete"],
    ],
)
def test_wrong_usage_is_2_and_starts_no_daemon(fresh: Instance, argv: list[str]) -> None:
    done = fresh(*argv, status=2)
    first, hint, *rest = lines(done.stderr)
    assert first.startswith("banger: ")
    assert hint.startswith("  ")
    assert not rest
    assert not (fresh.home / "run").exists()


def test_bare_commands_show_help(fresh: Instance) -> None:
    assert b"Usage: banger [OPTIONS] COMMAND" in fresh(status=2).stderr
    assert b"Usage: banger vm [OPTIONS] COMMAND" in fresh("vm", status=2).stderr
    assert b"[-- CMD...]" in fresh("vm", "run", "--help").stdout


def test_logs_are_raw_in_a_pipe_and_escaped_on_a_terminal(banger: Instance) -> None:
    banger("vm", "create", "--name", "talker")
    assert banger("vm", "logs", "talker").stdout == b"booting\nlogin: \x1b[31mred\n"
    assert banger("vm", "logs", "-n", "1", "talker").stdout == b"login: \x1b[31mred\n"
    assert b"no log yet" in banger("vm", "logs", "--source", "monitor", "talker", status=1).stderr
    ours, theirs = pty.openpty()
    with banger.popen("vm", "logs", "talker", stdout=theirs) as child:
        assert child.wait(60) == 0
    os.close(theirs)
    assert read_rest(ours) == b"booting\r\nlogin: \\x1b[31mred\r\n"
    os.close(ours)
    banger("vm", "delete", "talker")


def test_images_and_kernels(banger: Instance) -> None:
    assert "debian-bookworm" in lines(banger("image", "list").stdout)[1]
    assert json.loads(banger("image", "show", "debian-bookworm", "--json").stdout)["build_size"] == 2 << 30
    assert lines(banger("kernel", "list").stdout)[1].split()[:4] == [
        "debian-6.1",
        "debian",
        "x86_64",
        "6.1.0-40-cloud-amd64",
    ]
    assert b"no image is called" in banger("image", "show", "nope", status=1).stderr
    assert lines(banger("kernel", "list", "--available").stdout)[1].split() == [
        "debian-x",
        "debian",
        "x",
        "no",
    ]
    assert banger("kernel", "pull", "debian-x").stdout == b"debian-x\n"
    assert json.loads(banger("kernel", "list", "--available", "--json").stdout)[0]["here"] is True
    imported = banger("kernel", "import", "mine", "--from", "some/where", "--json").stdout
    assert json.loads(imported)["source"].endswith("/some/where")
    assert b"6.1.0-40-cloud-amd64" in banger("kernel", "show", "mine").stdout
    removed = banger("kernel", "rm", "mine", "nope", "debian-x", status=1)
    assert removed.stdout == b"mine\ndebian-x\n"
    assert b"no kernel 'nope'" in removed.stderr
    in_use = banger("image", "delete", "debian-bookworm", "nope", status=1).stderr
    assert b"the image is in use by 1 VM\n  delete first: web" in in_use
    assert b"no image is called" in in_use
    assert banger("image", "pull", "example.org/app", "--name", "app", "--size", "2G").stdout == b"app\n"
    assert json.loads(banger("image", "pull", "--file", "x.tar", "--json").stdout)["name"] == "pulled"
    assert b"which image?" in banger("image", "pull", status=2).stderr
    available = [line.split() for line in lines(banger("image", "list", "--available").stdout)]
    assert [row[:2] for row in available] == [["NAME", "HERE"], ["debian-bookworm", "yes"], ["tools", "no"]]
    assert available[2][2] == f"example.org/team/tools@sha256:{'ab' * 32}"
    assert json.loads(banger("image", "list", "--available", "--json").stdout)[1]["kind"] == "oci"
    assert b"--available" in banger("image", "list", "--available", "-q", status=2).stderr
    assert banger("image", "cache", "prune").stdout == (
        b"freed 3.0 MiB in 2 blobs; 1 stay: a pull uses them\n"
    )
    assert banger("image", "cache", "prune", "--dry-run").stdout == b"would free 3.0 MiB in 2 blobs\n"
    files = ("--rootfs", "r.ext4", "--kernel", "vmlinux")
    assert banger("image", "register", "mine", *files).stdout == b"e" * 64 + b"\n"
    mine = json.loads(banger("image", "show", "mine", "--json").stdout)
    assert mine["rootfs_path"].startswith("/")
    assert mine["rootfs_path"].endswith("/r.ext4")
    assert banger("image", "promote", "mine").stdout == b"mine\n"
    assert banger("image", "delete", "mine").stdout == b"mine\n"
    assert banger("image", "delete", "app", "pulled").stdout == b"app\npulled\n"


def test_daemon_status_start_stop(fresh: Instance) -> None:
    assert "not running" in lines(fresh("daemon", "status", status=1).stdout)[0]
    assert json.loads(fresh("daemon", "status", "--json", status=1).stdout)["running"] is False
    assert fresh("daemon", "stop").stdout == b"not running\n"
    fresh("daemon", "start")
    status = json.loads(fresh("daemon", "status", "--json").stdout)
    assert status["running"] is True
    assert status["pid"] == fresh.daemon_pid()
    with Path(f"/proc/{status['pid']}/stat").open() as stat:
        assert stat.read().split()[6] == "0", "no controlling terminal"
    assert fresh("daemon", "stop").stdout == b"stopped\n"
    assert not is_alive(status["pid"])
    assert not (fresh.home / "run" / "bangerd.sock").exists()


def test_many_commands_at_once_start_one_daemon(fresh: Instance) -> None:
    children = [fresh.popen("vm", "list", "-q") for _ in range(4)]
    assert [child.wait(60) for child in children] == [0] * 4
    for child in children:
        child.communicate()
    assert len((fresh.home / "state" / "starts").read_text().split()) == 1


def test_daemon_that_cannot_start_says_why(fresh: Instance) -> None:
    done = fresh("vm", "list", status=1, BANGER_TEST_BROKEN="1")
    assert done.stderr == b"banger: the moon is full\n  wait for another\n"
    assert not (fresh.home / "run" / "bangerd.sock").exists()
    fresh("vm", "list")


def test_newer_cli_replaces_an_older_daemon(fresh: Instance) -> None:
    fresh("vm", "list", BANGER_TEST_VERSION="0.0.1", BANGER_TEST_CLIENT="0.0.1")
    old = fresh.daemon_pid()
    fresh("vm", "list", BANGER_TEST_VERSION="0.0.2", BANGER_TEST_CLIENT="0.0.2")
    new = fresh.daemon_pid()
    assert new != old
    assert json.loads(fresh("version", "--json").stdout)["daemon"] == "0.0.2"
    # an older CLI is served as it is
    fresh("vm", "list", BANGER_TEST_VERSION="0.0.1", BANGER_TEST_CLIENT="0.0.1")
    assert fresh.daemon_pid() == new


def test_stale_socket_and_lock_of_a_killed_daemon(fresh: Instance) -> None:
    fresh("daemon", "start")
    pid = fresh.daemon_pid()
    assert pid is not None
    os.kill(pid, 9)
    eventually(lambda: not is_alive(pid))
    assert fresh.ids() == []
    assert fresh.daemon_pid() != pid


def test_unusable_socket_folder(fresh: Instance) -> None:
    fresh.home.mkdir()
    (fresh.home / "run").write_text("in the way")
    done = fresh("vm", "list", status=1)
    assert done.stderr.startswith(b"banger: the folder for the daemon's socket cannot be used: ")
    (fresh.home / "run").unlink()


def test_reader_of_a_table_may_go(banger: Instance) -> None:
    with banger.popen("vm", "list") as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.wait(60) in (0, 141)
        assert child.stderr is not None
        assert child.stderr.read() == b""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(banger: Instance, shell: str) -> None:
    assert b"_BANGER_COMPLETE" in banger("completion", shell).stdout


def complete(instance: Instance, words: str) -> list[str]:
    """Without a shell; tests/unit/cli/test_completion.py has those."""
    done = instance(_BANGER_COMPLETE="bash_complete", COMP_LINE=f"banger {words}")
    assert done.stderr == b""
    return [line.split("\t")[1] for line in lines(done.stdout) if line]


def test_completion_knows_commands_and_names_and_is_silent_without_a_daemon(fresh: Instance) -> None:
    assert complete(fresh, "vm sta") == ["start", "stats"]
    assert complete(fresh, "vm stop c") == []
    assert not (fresh.home / "run").exists()
    fresh("vm", "create", "--name", "complete-me")
    assert complete(fresh, "vm stop c") == ["complete-me"]
    assert complete(fresh, "vm create --image d") == ["debian-bookworm"]
    assert complete(fresh, "vm run --image t") == ["tools"]
    assert complete(fresh, "image pull t") == ["tools"]
    assert complete(fresh, "image show t") == []


FORBIDDEN = (
    *("asyncio", "ssl", "http.client", "http", "msgspec", "aiohttp", "subprocess", "dataclasses", "logging"),
    *("pathlib", "urllib", "tempfile", "banger.api", "banger.daemon", "banger.model.records", "termios"),
    *("banger.client.start", "banger.client.exchange", "banger.client.agentconnection", "email"),
    *("multiprocessing", "argparse"),
)


def test_vm_list_imports_nothing_expensive(banger: Instance) -> None:
    """click is what the hot path may cost; anything that it brings along itself is free."""
    script = (
        "import sys, click, click.shell_completion\n"
        "free = set(sys.modules)\n"
        "from banger.cli.main import run\n"
        "assert run(['vm', 'list', '-q']) == 0\n"
        f"print([name for name in {FORBIDDEN!r} if name in sys.modules and name not in free])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**banger.env, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert lines(done.stdout)[-1] == "[]"


def test_leaving_keeps_status_outputs_and_exit_handlers() -> None:
    script = (
        "import atexit, sys\n"
        "from banger.cli.main import leave\n"
        "atexit.register(lambda: print('handler'))\n"
        "print('out'); print('err', file=sys.stderr)\n"
        "leave(42)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (42, b"out\nhandler\n", b"err\n")


def test_threads_are_not_needed() -> None:
    """The SDK may be used from a program with threads, one client each."""
    from banger.client.client import quote

    assert threading.active_count() >= 1
    assert quote("a/b") == "a%2Fb"
    assert quote("..") == "%2E%2E"
    assert quote("") == "%20"
    assert quote("é") == "%C3%A9"
