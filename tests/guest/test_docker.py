"""Docker in a guest of the recipe's image: its stores lie on a plain file system, its modules are at hand.

One guest for all of it, its root put together as an overlay: on one, Docker would copy whole layers, or fail.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.artifacts import DOCKER_IMAGE, obtain
from tests.capabilities import require
from tests.fakes.ociregistry import busybox_tree
from tests.guest.conftest import module_instance
from tests.guest.instance import SMALL, Instance

pytestmark = [require("busybox"), pytest.mark.guest]

CONFIG = 'root_disk = "guest-overlay"\n' + SMALL.replace("memory_mib = 256", "memory_mib = 640")
STORES = ("/var/lib/docker", "/var/lib/containerd", "/var/lib/containers")


@pytest.fixture(scope="module")
def banger() -> Iterator[Instance]:
    obtain(images=(DOCKER_IMAGE,))
    yield from module_instance(CONFIG)


@pytest.fixture(scope="module")
def guest(banger: Instance) -> str:
    banger.ok("vm", "run", "-d", "--name", "dock", "--image", DOCKER_IMAGE)
    until_docker(banger, "dock")
    return "dock"


def until_docker(banger: Instance, guest: str) -> None:
    """Waits in the guest: asking from here would take from it the time that it needs."""
    script = "until systemctl start docker 2>/dev/null; do sleep 0.5; done"
    banger.ok("vm", "exec", guest, "--", "sh", "-c", script, timeout_s=400)


def busybox_tar(folder: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(busybox_tree(folder), ".")
    return out.getvalue()


def test_a_container_of_a_local_image_runs_and_stays(banger: Instance, guest: str, tmp_path: Path) -> None:
    assert json.loads(banger.ok("image", "show", DOCKER_IMAGE, "--json").text)["docker"] is True
    exec_in = ("vm", "exec", guest, "--")
    assert banger.ok(*exec_in, "stat", "-fc", "%T", "/", *STORES).text.split() == [
        "overlayfs",
        *["ext2/ext3"] * 3,
    ]
    assert banger.ok(*exec_in, "docker", "info", "-f", "{{.Driver}}").text == "overlay2\n"
    banger.ok(*exec_in, "docker", "import", "-", "local/busybox", stdin=busybox_tar(tmp_path / "tree"))
    run = (*exec_in, "docker", "run", "--rm", "local/busybox")
    assert banger.ok(*run, "echo", "hi").text == "hi\n"

    banger.ok("vm", "stop", guest)
    banger.ok("vm", "start", guest)
    until_docker(banger, guest)
    assert banger.ok(*run, "echo", "again").text == "again\n"
    mounts = banger.ok(*exec_in, "cat", "/proc/mounts").text
    assert "/run/banger" not in [line.split()[1] for line in mounts.splitlines()]


def test_modules_are_there_and_the_guest_can_add_to_them(banger: Instance, guest: str) -> None:
    script = """
        set -e
        modprobe -a overlay bridge br_netfilter nf_tables nft_compat veth fuse tun wireguard loop dm_thin_pool
        for name in bridge nf_tables veth tun wireguard; do test -d /sys/module/$name; done
        place=/lib/modules/$(uname -r)
        ln -s /usr/src/headers $place/build
        depmod
        readlink $place/build
    """
    assert banger.ok("vm", "exec", guest, "--", "sh", "-c", script).text == "/usr/src/headers\n"
