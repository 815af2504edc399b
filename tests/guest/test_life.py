"""SPEC §2 on a real guest: stop through its init, poweroff and reboot from inside, a lost daemon."""

from __future__ import annotations

import os
import signal

import pytest

from tests.guest.instance import Instance, until

pytestmark = pytest.mark.guest

UNIT = """[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh -c 'echo stopped > /root/stopped-by-init'
[Install]
WantedBy=multi-user.target
"""


def boot_id(banger: Instance, name: str) -> str:
    return banger.ok("vm", "exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id").text.strip()


def await_systemd(banger: Instance, name: str) -> None:
    """The agent answers before the image's init has finished; these tests ask init itself. Whether it was
    content with all of its units, which a slow host can keep waiting too long, is not what they ask."""
    booted = "until systemctl is-system-running --wait | grep -qE 'running|degraded'; do sleep 0.2; done"
    banger.ok("vm", "exec", name, "--", "sh", "-c", booted, timeout_s=600)


def test_stop_goes_through_init_and_start_finds_what_was_written(banger: Instance) -> None:
    banger.ok("vm", "create", "--name", "keeper")
    banger.ok(
        "vm",
        "exec",
        "keeper",
        "--",
        "sh",
        "-c",
        "cat > /etc/systemd/system/mark.service",
        stdin=UNIT.encode(),
    )
    await_systemd(banger, "keeper")
    wait = "systemctl enable --now mark.service 2>/dev/null; systemctl is-active mark"
    assert banger.ok("vm", "exec", "keeper", "--", "sh", "-c", wait).text == "active\n"
    banger.ok(
        "vm", "exec", "keeper", "--", "sh", "-c", "echo unsynced > /var/lib/unsynced; echo home > /root/home"
    )
    before = boot_id(banger, "keeper")
    banger.ok("vm", "stop", "keeper")
    assert banger.state("keeper") == "stopped"
    banger.ok("vm", "stop", "keeper")  # stop of a stopped VM is no error
    banger.ok("vm", "start", "keeper")
    files = "cat /root/stopped-by-init /var/lib/unsynced /root/home"
    assert banger.ok("vm", "exec", "keeper", "--", "sh", "-c", files).text == "stopped\nunsynced\nhome\n"
    assert boot_id(banger, "keeper") != before
    banger.ok("vm", "delete", "keeper")


def test_poweroff_inside_ends_stopped_and_reboot_comes_back(banger: Instance) -> None:
    banger.ok("vm", "create", "--name", "inside")
    await_systemd(banger, "inside")
    before = boot_id(banger, "inside")
    banger.banger("vm", "exec", "inside", "--", "systemctl", "reboot")

    def came_back() -> str:
        if banger.state("inside") != "running":
            return ""
        again = banger.banger("vm", "exec", "inside", "--", "cat", "/proc/sys/kernel/random/boot_id")
        return "yes" if again.status == 0 and again.text.strip() not in ("", before) else ""

    until(came_back, timeout_s=600)
    await_systemd(banger, "inside")
    banger.banger("vm", "exec", "inside", "--", "systemctl", "poweroff")
    assert banger.until_state("inside", "stopped", "error") == "stopped"
    banger.ok("vm", "delete", "inside")


def test_a_killed_daemon_loses_nothing(banger: Instance) -> None:
    banger.ok("vm", "create", "--name", "survivor")
    before = boot_id(banger, "survivor")
    os.kill(banger.daemon_pid(), signal.SIGKILL)
    assert banger.state("survivor") == "running"
    assert boot_id(banger, "survivor") == before
    os.kill(banger.daemon_pid(), signal.SIGKILL)
    (banger.vm_dir_of_only() / "handles.json").write_text("{ not json")
    assert banger.state("survivor") == "running"
    assert boot_id(banger, "survivor") == before
    banger.ok("daemon", "stop")
    assert boot_id(banger, "survivor") == before
    banger.ok("vm", "delete", "survivor")
