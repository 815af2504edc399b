"""SPEC §2 on real guests: a killed daemon, a hanging boot, a dead monitor, a stop without sync."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.system.process import read_pid_file
from tests.guest.instance import Instance, until

pytestmark = pytest.mark.guest

PROMPT_S = 45.0
"""`within seconds`, on a host that other tests keep busy: a boot that hangs ends by itself after 60 s."""
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /run/count; sleep 0.2; done"
COUNTED = "until n=$(cat /run/count) && [ $n ]; do :; done 2>/dev/null; echo $n"
"""It is empty for a moment, each time that it is written."""


def boot_id(banger: Instance, name: str) -> str:
    return banger.ok("vm", "exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id").text.strip()


def count(banger: Instance, name: str) -> int:
    return int(banger.ok("vm", "exec", name, "--", "sh", "-c", COUNTED).text)


def counted_on(banger: Instance, name: str, *, last: int) -> int:
    """The count, once it is more than `last`."""
    return until(lambda: now if (now := count(banger, name)) > last else 0, timeout_s=60)


def monitor_pid(vm_dir: Path) -> int:
    """Of the machine that runs or begins in vm_dir; 0 when none was launched yet."""
    monitor = read_pid_file(str(vm_dir / "monitor.pid"), role="monitor")
    return monitor.pid if monitor else 0


@contextlib.contextmanager
def hanging_boot(banger: Instance, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """`vm create NAME` whose machine is stopped as soon as it has been launched."""
    before = set(Path(banger.paths.vms_dir).glob("*"))
    creating = banger.start("vm", "create", "--name", name)
    try:

        def launched() -> int:
            assert creating.poll() is None, "the boot ended before it could hang"
            new = set(Path(banger.paths.vms_dir).glob("*")) - before
            return next((pid for folder in new if (pid := monitor_pid(folder))), 0)

        os.kill(until(launched, timeout_s=60), signal.SIGSTOP)
        yield creating
        creating.communicate(timeout=PROMPT_S)
    finally:
        if creating.poll() is None:
            creating.kill()
            creating.communicate(timeout=PROMPT_S)


@pytest.mark.parametrize("word", ["kill", "delete"])
def test_a_hanging_boot_ends_at_once(banger: Instance, word: str) -> None:
    with hanging_boot(banger, "hangs") as creating:
        began = time.monotonic()
        banger.ok("vm", word, "hangs")
        assert time.monotonic() - began < PROMPT_S
        creating.wait(timeout=PROMPT_S)
        assert creating.returncode == 1
    names = {str(vm["name"]): vm["state"] for vm in banger.vms()}
    assert names.get("hangs") == ("stopped" if word == "kill" else None)
    if word == "kill":
        banger.ok("vm", "delete", "hangs")


def test_ctrl_c_ends_a_hanging_boot_and_leaves_nothing(banger: Instance) -> None:
    with hanging_boot(banger, "interrupted") as creating:
        began = time.monotonic()
        os.killpg(creating.pid, signal.SIGINT)
        creating.wait(timeout=PROMPT_S)
        assert time.monotonic() - began < PROMPT_S
        assert creating.returncode != 0
    until(lambda: "interrupted" not in [vm["name"] for vm in banger.vms()], timeout_s=PROMPT_S)


def test_a_counter_counts_through_every_loss(banger: Instance, guest: str) -> None:
    """kill -9 of the daemon with handles.json intact, corrupt and gone: the guest never notices."""
    vm_dir = banger.vm_dir(guest)
    before, pid = boot_id(banger, guest), monitor_pid(vm_dir)
    assert pid
    banger.ok("vm", "exec", guest, "--", "sh", "-c", f"setsid sh -c '{COUNT}' >/dev/null 2>&1 </dev/null &")
    last = count(banger, guest)
    scratch = vm_dir / "handles.json"
    for loss in ("none", "corrupt", "missing"):
        os.kill(banger.daemon_pid(), signal.SIGKILL)
        if loss == "corrupt":
            scratch.write_text('{"processes": [')
        elif loss == "missing":
            scratch.unlink()
        listed = {str(vm["name"]): vm["state"] for vm in banger.vms()}
        assert listed[guest] == "running", loss
        assert monitor_pid(vm_dir) == pid, loss
        last = counted_on(banger, guest, last=last)
    assert boot_id(banger, guest) == before


def test_a_monitor_killed_meanwhile_means_stopped_with_its_disks(banger: Instance, guest: str) -> None:
    banger.ok(
        "vm", "exec", guest, "--", "sh", "-c", "echo kept > /root/kept; echo kept > /var/lib/kept; sync"
    )
    machine = monitor_pid(banger.vm_dir(guest))
    assert machine  # kill(0) would be this suite's own end
    os.kill(banger.daemon_pid(), signal.SIGKILL)
    os.kill(machine, signal.SIGKILL)
    shown = banger.show(guest)
    runtime = shown["runtime"]
    assert isinstance(runtime, dict)
    assert shown["state"] == "stopped"
    assert "not running" in str(runtime["last_error"])
    banger.ok("vm", "start", guest)
    assert banger.ok("vm", "exec", guest, "--", "cat", "/root/kept", "/var/lib/kept").text == "kept\nkept\n"


def test_stop_keeps_what_was_not_synced_and_restart_boots_anew(banger: Instance, guest: str) -> None:
    banger.ok("vm", "exec", guest, "--", "sh", "-c", "echo late > /root/late; echo late > /var/lib/late")
    banger.ok("vm", "stop", guest)
    assert banger.state(guest) == "stopped"
    banger.ok("vm", "start", guest)
    assert banger.ok("vm", "exec", guest, "--", "cat", "/root/late", "/var/lib/late").text == "late\nlate\n"
    before = boot_id(banger, guest)
    banger.ok("vm", "restart", guest)
    assert boot_id(banger, guest) != before
    banger.ok("vm", "kill", "--signal", "KILL", guest)
    assert banger.state(guest) == "stopped"
    banger.ok("vm", "start", guest)


def test_delete_takes_the_good_ones_and_names_the_missing(banger: Instance) -> None:
    for name in ("a-one", "b-two", "c-three"):
        banger.ok("vm", "create", "--no-start", "--name", name)
    result = banger.banger("vm", "delete", "a-one", "b-two", "missing", "c-three")
    assert result.status == 1, banger.explain(("vm", "delete"), result)
    assert "missing" in result.stderr
    assert not {"a-one", "b-two", "c-three"} & {str(vm["name"]) for vm in banger.vms()}
