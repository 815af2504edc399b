"""SPEC §3's `vm run` and `vm exec` on a real guest: what comes out, what it exits with, what it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import signal
import socket
import time

import pytest

from tests.guest.instance import BANGER, BOOT_TIMEOUT_S, Instance, until

pytestmark = pytest.mark.guest


def listed(banger: Instance) -> list[dict[str, object]]:
    """The VMs, without their figures: those of one that runs are taken anew every few seconds."""
    return [{name: value for name, value in vm.items() if name != "stats"} for vm in banger.vms()]


def test_a_named_run_prints_the_guests_own_host_name_and_stays(banger: Instance) -> None:
    result = banger.ok("vm", "run", "--name", "handles-test", "--", "cat", "/etc/hostname")
    assert result.text == "handles-test\n"
    assert "spec: 1 vcpu | 256 MiB | 1G disk" in result.stderr
    assert banger.state("handles-test") == "running"

    scratch = json.loads((banger.vm_dir("handles-test") / "handles.json").read_text())
    monitor = next(p for p in scratch["processes"] if p["role"] == "monitor")
    assert os.readlink(f"/proc/{monitor['pid']}/cwd") == str(banger.vm_dir("handles-test"))
    assert banger.run_in_netns("ip", "link", "show", scratch["tap_device"]).status == 0

    banger.ok("vm", "stop", "handles-test")
    assert banger.state("handles-test") == "stopped"
    assert not (banger.vm_dir("handles-test") / "handles.json").exists()
    assert not list(banger.vm_dir("handles-test").glob("*.sock*"))
    banger.ok("vm", "delete", "handles-test")


def test_rm_exits_with_the_commands_status_and_leaves_the_list_as_it_was(banger: Instance) -> None:
    before = listed(banger)
    result = banger.banger("vm", "run", "--rm", "--", "sh", "-c", "echo out; echo err >&2; exit 42")
    assert result.status == 42, banger.explain(("vm", "run"), result)
    assert result.text == "out\n"
    assert "err\n" in result.stderr
    assert listed(banger) == before


def test_two_runs_at_once_both_work(banger: Instance) -> None:
    runs = [banger.start("vm", "run", "--rm", "--", "hostname") for _ in range(2)]
    names = set()
    for run in runs:
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, err.decode()
        names.add(out.decode().strip())
    assert len(names) == 2
    assert banger.vms() == [] or all(vm["name"] not in names for vm in banger.vms())


def test_interrupting_a_boot_leaves_nothing(banger: Instance) -> None:
    before = listed(banger)
    run = banger.start("vm", "run", "--rm", "--name", "interrupted", "--", "sleep", "600")
    # a boot that is over sooner than we look is interrupted in its command
    until(lambda: any(vm["state"] in ("starting", "running") for vm in banger.vms()), timeout_s=60)
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=120)
    assert run.returncode != 0
    assert listed(banger) == before


def test_a_killed_cli_leaves_nothing_after_its_lease(banger: Instance) -> None:
    before = listed(banger)
    run = banger.start("vm", "run", "--rm", "--name", "orphan", "--", "sleep", "600")
    until(
        lambda: any(vm["state"] == "running" for vm in banger.vms() if vm["name"] == "orphan"), timeout_s=240
    )
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=30)
    until(lambda: listed(banger) == before, timeout_s=60)


def test_exec_carries_stdin(banger: Instance, guest: str) -> None:
    assert banger.ok("vm", "exec", guest, "--", "cat", stdin=b"hi\n").stdout == b"hi\n"


def test_exec_with_a_terminal_names_a_pts(banger: Instance, guest: str) -> None:
    """A real terminal on this side, as a person has."""
    pid, master = pty.fork()
    if pid == 0:
        words = banger.argv(BANGER, "vm", "exec", "-t", guest, "--", "tty")
        os.execvpe(words[0], words, banger.environment)
    seen = b""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < deadline:
        if select.select([master], [], [], 1.0)[0]:
            try:
                data = os.read(master, 4096)
            except OSError:
                break
            if not data:
                break
            seen += data
    _, status = os.waitpid(pid, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 0, seen
    assert b"/dev/pts/" in seen


def test_64_mib_arrive_unchanged(banger: Instance, guest: str) -> None:
    data = os.urandom(1 << 20) * 64
    result = banger.ok("vm", "exec", guest, "--", "cat", stdin=data)
    assert hashlib.sha256(result.stdout).hexdigest() == hashlib.sha256(data).hexdigest()


def test_stderr_stays_stderr(banger: Instance, guest: str) -> None:
    result = banger.ok("vm", "exec", guest, "--", "sh", "-c", "echo a; echo b >&2")
    assert result.stdout == b"a\n"
    assert result.stderr == "b\n"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -9 $$"), 137),
        (("no-such-program",), 127),
        (("/etc/hostname",), 126),
    ],
)
def test_exit_statuses(banger: Instance, guest: str, command: tuple[str, ...], status: int) -> None:
    result = banger.banger("vm", "exec", guest, "--", *command)
    assert result.status == status, banger.explain(command, result)


def test_env_cwd_and_user(banger: Instance, guest: str) -> None:
    result = banger.ok(
        "vm", "exec", "--env", "GREETING=hello world", "--cwd", "/tmp", guest,
        "--", "sh", "-c", 'echo "$GREETING"; pwd; whoami',
    )  # fmt: skip
    assert result.text == "hello world\n/tmp\nroot\n"
    assert banger.ok("vm", "exec", "--user", "nobody", guest, "--", "id", "-un").text == "nobody\n"


def test_the_guest_is_what_it_says(banger: Instance, guest: str) -> None:
    script = "cat /etc/hostname; df -B1 --output=target / /root | tail -n +2; mount | grep -c ' / '; id -u"
    assert banger.ok("vm", "exec", guest, "--", "sh", "-c", script).text.splitlines() == [
        guest, "/", "/root", "1", "0",
    ]  # fmt: skip


def test_ping_and_ssh_from_the_host(banger: Instance, guest: str) -> None:
    runtime = banger.show(guest)["runtime"]
    assert isinstance(runtime, dict)
    address = str(runtime["guest_ip"])
    # the kernel asks three times in three seconds whose the address is: a host that is busy may be later
    until(lambda: banger.run_in_netns("ping", "-c", "1", "-W", "10", address).status == 0, timeout_s=60)
    key = next(iter(banger.home.glob("state/ssh/id_ed25519")))
    host_key = (banger.vm_dir(guest) / "ssh_host_ed25519_key.pub").read_text().split()
    known = banger.home / "known_hosts"
    known.write_text(f"{address} {host_key[0]} {host_key[1]}\n")
    until(
        lambda: (
            banger.banger("vm", "exec", guest, "--", "systemctl", "is-active", "ssh").text.strip() == "active"
        ),
        timeout_s=120,
    )
    options = ["-F", "/dev/null", "-i", str(key), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]
    options += ["-o", f"UserKnownHostsFile={known}", "-o", "ConnectTimeout=30"]
    result = banger.run_in_netns("ssh", *options, f"root@{address}", "hostname", timeout_s=120)
    assert result.text == f"{guest}\n", result.stderr


def test_the_guest_reaches_the_host(banger: Instance, guest: str) -> None:
    ping = ("vm", "exec", guest, "--", "ping", "-c", "1", "-W", "10", "172.16.0.1")
    until(lambda: banger.banger(*ping).status == 0, timeout_s=60)


def test_logs_show_the_console(banger: Instance, guest: str) -> None:
    assert banger.ok("vm", "logs", guest).status == 0


def test_sockets_are_private(banger: Instance, guest: str) -> None:
    folder = banger.vm_dir(guest)
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("fc.sock", "v.sock"):
        assert (folder / name).stat().st_mode & 0o077 == 0


def test_a_taken_name_is_one_clear_error(banger: Instance, guest: str) -> None:
    before = listed(banger)
    result = banger.banger("vm", "create", "--name", guest, "--no-start")
    assert result.status == 1
    assert f"banger: a VM named {guest} exists already" in result.stderr
    assert "Traceback" not in result.stderr
    assert listed(banger) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("vm", "create", "--vcpu", "0"), "vcpu"),
        (("vm", "create", "--memory", "12"), "128"),
        (("vm", "create", "--image", "no-such-image"), "no-such-image"),
        (("vm", "create", "--name", "Not_A_Name"), "name"),
        (("vm", "run", "-d", "--rm"), "-d"),
        (("vm", "run", "-d", "--", "true"), "-d"),
    ],
)
def test_bad_input_leaves_no_row(banger: Instance, words: tuple[str, ...], said: str) -> None:
    before = banger.banger("vm", "list", "-a", "-q").stdout
    result = banger.banger(*words)
    assert result.status in (1, 2, 125), banger.explain(words, result)
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert banger.banger("vm", "list", "-a", "-q").stdout == before


def test_the_socket_is_the_owners(banger: Instance) -> None:
    assert os.stat(banger.paths.socket).st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(banger.paths.socket)
