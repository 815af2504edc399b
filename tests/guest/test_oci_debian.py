"""Debian with systemd as an OCI image, by umoci in three layers: it boots with its own init, and serves.

What is in it is the tests' own Debian without its documentation, git and perl, so that it is moved quickly.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.artifacts import artifacts
from tests.capabilities import require
from tests.fakes.ociregistry import make_layout, push, registry
from tests.guest.files import assert_files_equal
from tests.guest.instance import BOOT_TIMEOUT_S, Instance, until

pytestmark = [require("root", "docker-registry", "skopeo", "umoci"), pytest.mark.guest]

SPARED = ("doc", "info", "locale", "man", "perl", "perl5", "zoneinfo", "bash-completion")
CHANGING = ("var", "etc/machine-id", "etc/ssh", "etc/motd", "etc/resolv.conf", "etc/hostname", "etc/hosts")
"""What the running system writes."""

GREET = b"""\
[Unit]
Description=Says that it was here
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo "from $$(cat /etc/layer)" >/run/greeting'
ExecStop=/bin/sh -c 'echo stopped >/root/farewell'
[Install]
WantedBy=multi-user.target
"""


def debian_tree(folder: Path) -> Path:
    folder.mkdir()
    argv = [artifacts().e2fsprogs.debugfs, "-R", f"rdump / {folder}", str(artifacts().rootfs)]
    subprocess.run(argv, check=True, capture_output=True, timeout=300)
    usr = folder / "usr"
    unwanted = [*(usr / "share" / name for name in SPARED), usr / "lib/git-core", usr / "lib/modules"]
    for path in unwanted:
        shutil.rmtree(path, ignore_errors=True)
    for path in [*(usr / "bin").glob("git*"), *(usr / "bin").glob("perl*")]:
        path.unlink()
    shutil.rmtree(folder / "lost+found")
    return folder


def with_whole_times(folder: Path) -> Path:
    """umoci rounds times to the nearest second."""
    for path in folder.rglob("*"):
        moment = path.lstat().st_mtime_ns // 10**9
        os.utime(path, (moment, moment), follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """The image's files, as they are on the host: two layers of them, and one that takes a file away."""
    folder = Path(tempfile.mkdtemp(prefix="banger-layout-"))
    try:
        root = debian_tree(folder / "root")
        (root / "etc/not-for-long").write_text("gone with the last layer")
        second = folder / "second"
        wants = second / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True)
        (second / "etc/layer").write_text("the second layer")
        (second / "etc/systemd/system/greet.service").write_bytes(GREET)
        (wants / "greet.service").symlink_to("/etc/systemd/system/greet.service")
        config = {"env": "COLOUR=green", "cmd": "/sbin/init"}
        layers: list[Path | str] = [with_whole_times(root), with_whole_times(second), "/etc/not-for-long"]
        make_layout(folder / "layout", "debian", layers, config)
        (root / "etc/not-for-long").unlink()
        shutil.copytree(second, root, symlinks=True, dirs_exist_ok=True)
        yield root
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def debian(banger: Instance, tree: Path) -> str:
    with registry(banger.home / "registry", run_in=banger.argv()) as address:
        push(tree.parent / "layout", "debian", f"{address}/debian:systemd", run_in=banger.argv())
        banger.ok("vm", "run", "-d", "--name", "debian", "--image", f"{address}/debian:systemd")
    return "debian"


def test_systemd_is_pid_1_and_starts_the_images_services(banger: Instance, debian: str) -> None:
    inside = ("vm", "exec", debian, "--")
    assert banger.ok(*inside, "readlink", "/proc/1/exe").text == "/usr/lib/systemd/systemd\n"
    # "degraded" would be a unit that failed; before there is a bus, it is "offline" or nothing
    state = until(
        lambda: (
            (s := banger.banger(*inside, "systemctl", "is-system-running").text.strip())
            in ("running", "degraded")
            and s
        ),
        timeout_s=BOOT_TIMEOUT_S,
    )
    failed = banger.ok(*inside, "systemctl", "--failed", "--no-legend", "--plain").text
    assert (state, failed) == ("running", "")
    assert banger.ok(*inside, "systemctl", "is-active", "greet", "ssh").text == "active\nactive\n"
    assert banger.ok(*inside, "cat", "/run/greeting").text == "from the second layer\n"
    health = json.loads(banger.ok("vm", "health", debian, "--json").text)
    assert health["init"].endswith("/systemd") or health["init"] == "/sbin/init"


def test_commands_get_its_env_and_its_bash(banger: Instance, debian: str) -> None:
    assert banger.ok("vm", "exec", debian, "--", "sh", "-c", "echo $COLOUR; pwd").text == "green\n/root\n"
    said = banger.ok("vm", "shell", debian, stdin=b'echo "$0 ${BASH_VERSION%%.*} $COLOUR"\n').text
    assert said == "/bin/bash 5 green\n"


def test_its_files_are_the_images(banger: Instance, debian: str, tree: Path) -> None:
    assert_files_equal(banger, debian, tree, without=CHANGING, tools="")


def test_a_stop_ends_its_services_in_order(banger: Instance, debian: str) -> None:
    banger.ok("vm", "stop", debian)
    work_disk = banger.vm_dir(debian) / "work.ext4"
    said = subprocess.run(
        ["debugfs", "-R", "cat /farewell", str(work_disk)], check=True, capture_output=True, timeout=60
    )
    assert said.stdout == b"stopped\n"
