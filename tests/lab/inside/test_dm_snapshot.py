"""dm-snapshot where there is a device-mapper: a VM's whole life, and what a crash leaves of it.

On the fake Firecracker the disk is looked at from the host, as a guest would have left it; with a real one
(BANGER_TEST_FIRECRACKER) guests boot on the lab's KVM and write it themselves.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from banger.disk.dmsnapshot import FRESH, ext4_bytes
from banger.system import devicemapper, loops
from tests.capabilities import demand, firecracker_path, require
from tests.fakes.installed import install_fake_firecracker
from tests.lab.inside.life import ROOT_BYTES, Daemon

pytestmark = [pytest.mark.lab, require("device-mapper", "loop", "tun", "nft", "kvm")]


def runtime(daemon: Daemon, name: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(daemon.ask("runtime", name))
    return found


def debugfs(device: str, request: str) -> str:
    """One request to the file system on a device. The fake's guest does not mount it."""
    done = subprocess.run(
        ["debugfs", "-w", "-R", request, device], capture_output=True, check=True, timeout=60, text=True
    )
    return done.stdout


def clean(daemon: Daemon) -> None:
    assert daemon.ask("audit") == ""


def test_a_life_on_the_fake(home: Path, tmp_path: Path) -> None:
    """Start, stop, start, a killed daemon, delete: what was written stays, and each audit finds nothing."""
    firecracker = install_fake_firecracker(tmp_path)
    with Daemon(home, firecracker) as daemon:
        daemon.ask("create", "keeper")
        clean(daemon)
        seen = runtime(daemon, "keeper")
        device = seen["dm_dev"]
        assert seen["dm_name"].startswith("fc-rootfs-")
        assert devicemapper.device_size(device) == ROOT_BYTES
        assert ROOT_BYTES - ext4_bytes(device) < 16 << 20  # `/` is as large as it was asked for
        assert not Path(seen["system_overlay_path"] + FRESH).exists()
        debugfs(device, "write /etc/hostname kept")
        assert daemon.ask("stop", "keeper") == "stopped"
        clean(daemon)
        assert not devicemapper.list_targets()
        assert not loops.list_loops()
        daemon.ask("start", "keeper")
        clean(daemon)
        device = runtime(daemon, "keeper")["dm_dev"]
        assert debugfs(device, "cat kept") == Path("/etc/hostname").read_text()
        used = Path(seen["system_overlay_path"]).stat().st_blocks * 512
        assert used < 64 << 20
        daemon.kill()
    with Daemon(home, firecracker) as daemon:
        assert daemon.ask("state", "keeper") == "running"
        clean(daemon)
        daemon.ask("delete", "keeper")
        clean(daemon)


def test_two_vms_share_an_image_and_a_dead_one_is_cleaned_up(home: Path, tmp_path: Path) -> None:
    """The daemon and one monitor die, all records of handles are lost: what the system shows is enough, and
    the other VM over the same image does not notice."""
    firecracker = install_fake_firecracker(tmp_path)
    with Daemon(home, firecracker) as daemon:
        daemon.ask("create", "one")
        daemon.ask("create", "two")
        clean(daemon)
        assert len(loops.list_loops()) == 4
        one, two = (Path(runtime(daemon, name)["vm_dir"]) for name in ("one", "two"))
        monitor = next(p for p in json.loads((two / "handles.json").read_text())["processes"])
        daemon.kill()
    os.kill(monitor["pid"], signal.SIGKILL)
    (one / "handles.json").write_text("{ not json")
    (two / "handles.json").unlink()
    with Daemon(home, firecracker) as daemon:
        assert daemon.ask("state", "one") == "running"
        assert daemon.ask("state", "two") == "stopped"
        clean(daemon)
        assert len(loops.list_loops()) == 2
        assert Path(runtime(daemon, "one")["dm_dev"]).exists()
        daemon.ask("start", "two")
        clean(daemon)
        for name in ("one", "two"):
            daemon.ask("delete", name)
        clean(daemon)


def test_a_busy_target_is_removed_once_it_is_free(home: Path, tmp_path: Path) -> None:
    """Whoever scans block devices holds a new one for a moment."""
    firecracker = install_fake_firecracker(tmp_path)
    with Daemon(home, firecracker) as daemon:
        daemon.ask("create", "held")
        descriptor = os.open(runtime(daemon, "held")["dm_dev"], os.O_RDONLY)
        began = time.monotonic()
        release = threading.Timer(3.0, os.close, (descriptor,))
        release.start()
        assert daemon.ask("stop", "held") == "stopped"
        assert time.monotonic() - began > 2.5
        release.join()
        clean(daemon)
        daemon.ask("delete", "held")


def test_a_namesake_is_reported_and_stays(home: Path, tmp_path: Path) -> None:
    firecracker = install_fake_firecracker(tmp_path)
    environment = {**os.environ, "DM_DISABLE_UDEV": "1"}
    subprocess.run(
        ["dmsetup", "create", "fc-rootfs-12345678", "--table", "0 8 zero"], check=True, env=environment
    )
    try:
        with Daemon(home, firecracker) as daemon:
            said = daemon.ask("audit")
            assert said == "dm fc-rootfs-12345678: has banger's name, but not its mark"
        assert [target.name for target in devicemapper.list_targets()] == ["fc-rootfs-12345678"]
    finally:
        subprocess.run(["dmsetup", "remove", "fc-rootfs-12345678"], check=True, env=environment)


def test_a_store_that_cannot_grow_is_named_before_and_after(home: Path, tmp_path: Path) -> None:
    """The disk below it fills up: a warning while there is time, then a clear error and no half start."""
    firecracker = install_fake_firecracker(tmp_path)
    vms = home / "state/vms"
    vms.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1100M", "tmpfs", str(vms)], check=True)
    try:
        with Daemon(home, firecracker) as daemon:
            daemon.ask("create", "full")
            assert daemon.ask("stats", "full") == ""
            place = os.statvfs(vms)
            with (vms / "ballast").open("wb") as ballast:
                os.posix_fallocate(ballast.fileno(), 0, place.f_bavail * place.f_frsize - (4 << 20))
            said = daemon.ask("stats", "full")
            assert "the root disk of full is about to break: less than 64 MiB are free" in said
            assert daemon.ask("stats", "full") == ""  # said once
            fill(runtime(daemon, "full")["dm_dev"], 16 << 20)
            assert "the root disk of full is lost (invalid)" in daemon.ask("stats", "full")
            (vms / "ballast").unlink()
            assert daemon.ask("stop", "full") == "stopped"
            clean(daemon)
            with pytest.raises(AssertionError, match="the root disk of full is lost"):
                daemon.ask("start", "full")
            clean(daemon)
            daemon.ask("delete", "full")
            clean(daemon)
    finally:
        subprocess.run(["umount", str(vms)], check=True)


def fill(device: str, size_bytes: int) -> None:
    """Write somewhere into the device; it refuses."""
    descriptor = os.open(device, os.O_WRONLY | os.O_DSYNC)
    try:
        with pytest.raises(OSError) as caught:
            os.pwrite(descriptor, b"x" * size_bytes, 512 << 20)
        assert caught.value.errno == errno.EIO
    finally:
        os.close(descriptor)


@pytest.mark.firecracker
def test_a_life_on_a_real_firecracker(home: Path) -> None:
    """A guest's own files survive stop, and its boot a killed daemon."""
    demand("kvm-usable")
    firecracker = firecracker_path()
    assert firecracker is not None
    with Daemon(home, firecracker) as daemon:
        daemon.ask("create", "real")
        clean(daemon)
        root = daemon.ask(
            "exec", "real", "sh", "-c", "echo written > /kept; df -B1 --output=size / | tail -1"
        )
        assert int(root) > ROOT_BYTES * 9 // 10
        assert daemon.ask("stop", "real") == "stopped"
        clean(daemon)
        daemon.ask("start", "real")
        clean(daemon)
        assert daemon.ask("exec", "real", "cat", "/kept") == "written\n"
        boot = daemon.ask("exec", "real", "cat", "/proc/sys/kernel/random/boot_id")
        daemon.kill()
    with Daemon(home, firecracker) as daemon:
        assert daemon.ask("state", "real") == "running"
        assert daemon.ask("exec", "real", "cat", "/proc/sys/kernel/random/boot_id") == boot
        clean(daemon)
        daemon.ask("delete", "real")
        clean(daemon)
