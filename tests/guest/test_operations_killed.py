"""The daemon is killed in the middle of each operation on a real guest; the next command puts it right.

When is read off the command's own progress lines: as soon as it names the step, the daemon gets SIGKILL.
What follows finds the VM running and usable, or stopped and startable; another VM runs through all of it
without noticing; and the audit finds nothing (conftest, after each test). The tests share one VM, in order.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.guest.instance import Instance
from tests.guest.test_recovery import COUNT, count, counted_on

pytestmark = pytest.mark.guest

NAME = "victim"
COMMAND_S = 60


def killed_at(banger: Instance, message: str, *words: str) -> int:
    """`banger WORDS`, whose daemon is killed as soon as the progress says `message`: its exit status."""
    daemon = banger.daemon_pid()
    command = banger.start(*words)
    assert command.stderr is not None
    said: list[str] = []
    for line in command.stderr:
        said.append(line.decode("utf-8", "replace").rstrip())
        if message in said[-1]:
            os.kill(daemon, signal.SIGKILL)
            break
    else:
        pytest.fail(f"no progress line says {message!r}: {said}")
    _, rest = command.communicate(timeout=COMMAND_S)
    if command.returncode != 0:
        assert b"banger: " in rest, "the command says that its daemon went away"
    return command.returncode


def boot_of(banger: Instance, name: str) -> str:
    return banger.ok("vm", "exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id").text.strip()


def recovered(banger: Instance) -> str:
    """What the VM is now; and it is that: usable, or at rest with its reason."""
    shown = banger.show(NAME)
    state, runtime = str(shown["state"]), shown["runtime"]
    assert isinstance(runtime, dict)
    assert state in ("running", "stopped")
    if state == "running":
        assert boot_of(banger, NAME)
    else:
        assert not runtime.get("tap_device")
    return state


def running(banger: Instance) -> None:
    """Start the VM where it is not: a VM that a crash left stopped is startable."""
    if banger.state(NAME) != "running":
        banger.ok("vm", "start", NAME)
    said = banger.ok("vm", "exec", NAME, "--", "sh", "-c", "touch /root/used /var/lib/used && echo usable")
    assert said.text == "usable\n"


@pytest.fixture(scope="module")
def counting(banger: Instance, guest: str) -> str:
    """The other VM counts, and says its boot id."""
    banger.ok("vm", "exec", guest, "--", "sh", "-c", f"setsid sh -c '{COUNT}' >/dev/null 2>&1 </dev/null &")
    return boot_of(banger, guest)


@pytest.fixture(autouse=True)
def _the_other_does_not_notice(banger: Instance, guest: str, counting: str) -> Iterator[None]:
    before = count(banger, guest)
    yield
    assert banger.state(guest) == "running"
    assert boot_of(banger, guest) == counting
    counted_on(banger, guest, last=before)


def test_create(banger: Instance) -> None:
    assert killed_at(banger, "booting", "vm", "create", "--name", NAME) == 1
    assert recovered(banger) == "stopped"
    running(banger)


def test_start(banger: Instance) -> None:
    banger.ok("vm", "kill", "--signal", "KILL", NAME)
    assert killed_at(banger, "booting", "vm", "start", NAME) == 1
    assert recovered(banger) == "stopped"
    running(banger)


def test_stop(banger: Instance) -> None:
    """The guest has been asked and goes down while nobody looks."""
    assert killed_at(banger, "waiting for the guest to end", "vm", "stop", NAME) == 1
    assert recovered(banger) == "stopped"
    running(banger)


def test_restart(banger: Instance) -> None:
    before = boot_of(banger, NAME)
    assert killed_at(banger, "booting", "vm", "restart", NAME) == 1
    assert recovered(banger) == "stopped"
    running(banger)
    assert boot_of(banger, NAME) != before


def test_set(banger: Instance) -> None:
    """What was said to be set is set; the guest runs on."""
    before = boot_of(banger, NAME)
    killed_at(banger, "applies at the next start", "vm", "set", "--memory", "320M", "--disk-size", "2G", NAME)
    assert recovered(banger) == "running"
    assert boot_of(banger, NAME) == before
    spec = banger.show(NAME)["spec"]
    assert isinstance(spec, dict)
    assert (spec["memory_mib"], spec["work_disk_size_bytes"]) == (320, 2 << 30)


def test_delete(banger: Instance) -> None:
    """Gone, or there and deleted by the next try."""
    killed_at(banger, f"deleting {NAME}", "vm", "delete", NAME)
    if NAME in [vm["name"] for vm in banger.vms()]:
        recovered(banger)
        banger.ok("vm", "delete", NAME)
        assert NAME not in [vm["name"] for vm in banger.vms()]
