"""Docker in a guest of the recipe's image: its stores lie on a plain file system, its modules are at hand.

One guest for all of it, made by typing docs/docker.md, its root put together as an overlay: on one, Docker
would copy whole layers, or fail.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.artifacts import DOCKER_IMAGE, artifacts, obtain
from tests.capabilities import require
from tests.fakes.ociregistry import busybox_tree
from tests.guest.conftest import module_instance
from tests.guest.instance import SMALL, Instance
from tests.guest.pagetyping import Page, type_page
from tests.guest.typist import typist

# a whole page typed, and Docker started twice, emulated
pytestmark = [require("busybox"), pytest.mark.guest, pytest.mark.limit(1800)]

CONFIG = 'root_disk = "guest-overlay"\n' + SMALL.replace("memory_mib = 256", "memory_mib = 640")
STORES = ("/var/lib/docker", "/var/lib/containerd", "/var/lib/containers")


HELLO = "banger vm exec box -- docker run hello-world"
LOAD = """tar -C rootfs -c . | banger vm exec box -- docker import -c 'CMD ["echo", "hi"]' - hello-world"""
IMPORT = "banger kernel import mine --from ./build"
PAGE = Page(
    before={
        "": ("cp -r $FILES/rootfs .",),
        HELLO: (LOAD,),
        IMPORT: ("mkdir build && cp -r $FILES/vmlinux $FILES/modules build",),
    },
    shows={
        HELLO: "^hi$",
        "tar -C rootfs -c . | banger vm exec box -- docker import - local/app": "^sha256:",
        "banger kernel list --available": r"debian-bookworm .*\n(.*\n)*.*debian-trixie ",
        "banger kernel pull debian-trixie": "^debian-trixie$",
        IMPORT: "^mine$",
    },
    other={
        "banger image pull debian-bookworm --name new --kernel debian-trixie": (
            "builds a Debian, a minute and more: tests/host/test_image_build.py; that kernel: test_kernels.py"
        )
    },
)


@pytest.fixture(scope="module")
def banger() -> Iterator[Instance]:
    obtain(images=(DOCKER_IMAGE,), kernels=("debian-trixie",))
    yield from module_instance(CONFIG)


@pytest.fixture(scope="module")
def guest(banger: Instance) -> str:
    """The page's guest, which has its image local/app."""
    files = Path(tempfile.mkdtemp(prefix="banger-docker-"))
    try:
        busybox_tree(files / "rootfs")
        (files / "vmlinux").symlink_to(artifacts().vmlinux)
        (files / "modules").symlink_to(artifacts().modules_dir)
        with typist(banger) as person:
            person.type(f"FILES={files}")
            type_page(person, "docs/docker.md", PAGE)
    finally:
        shutil.rmtree(files)
    return "box"


def until_docker(banger: Instance, guest: str) -> None:
    """Waits in the guest: asking from here would take from it the time that it needs."""
    script = "until systemctl start docker 2>/dev/null; do sleep 0.5; done"
    banger.ok("vm", "exec", guest, "--", "sh", "-c", script, timeout_s=400)


def test_a_container_of_a_local_image_runs_and_stays(banger: Instance, guest: str) -> None:
    assert json.loads(banger.ok("image", "show", DOCKER_IMAGE, "--json").text)["docker"] is True
    exec_in = ("vm", "exec", guest, "--")
    assert banger.ok(*exec_in, "stat", "-fc", "%T", "/", *STORES).text.split() == [
        "overlayfs",
        *["ext2/ext3"] * 3,
    ]
    assert banger.ok(*exec_in, "docker", "info", "-f", "{{.Driver}}").text == "overlay2\n"
    banger.ok("vm", "stop", guest)
    banger.ok("vm", "start", guest)
    until_docker(banger, guest)
    run = (*exec_in, "docker", "run", "--rm", "local/app")
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
