"""Kernels of several Debian releases and one of a user's own, under an image that knows of none of them.

The image is a busybox and its links: what guests find at /lib/modules is banger's.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.image import catalog, cpio
from tests.artifacts import obtain
from tests.capabilities import require
from tests.fakes.ociregistry import busybox_tree, make_layout
from tests.guest.conftest import module_instance
from tests.guest.instance import Instance

pytestmark = [require("umoci", "busybox"), pytest.mark.guest]

RELEASES = {"debian-bookworm": "6.1.", "debian-bookworm-backports": "6.12.", "debian-trixie": "6.12."}


@pytest.fixture(scope="module")
def banger() -> Iterator[Instance]:
    obtain(kernels=tuple(catalog.KERNELS))
    yield from module_instance()


@pytest.fixture(scope="module")
def archives(banger: Instance) -> Iterator[dict[str, Path]]:
    """An image without modules, and one with its own for bookworm's kernel and something in a container
    store, as tars of an OCI layout."""
    folder = Path(tempfile.mkdtemp(prefix="banger-kernels-"))
    try:
        tree = busybox_tree(folder / "tree")
        release = json.loads(banger.ok("kernel", "show", "debian-bookworm", "--json").text)["kernel_version"]
        own = folder / "own"
        (own / f"lib/modules/{release}/kernel").mkdir(parents=True)
        (own / f"lib/modules/{release}/kernel/mine").write_text("the image's\n")
        (own / "var/lib/docker/volumes").mkdir(parents=True)
        (own / "var/lib/docker/volumes/one").write_text("a volume\n")
        (own / "bin").mkdir()
        (own / "bin/cp").symlink_to("busybox")
        found: dict[str, Path] = {}
        for name, layers in (("plain", [tree]), ("own", [tree, own])):
            layout = folder / f"layout-{name}"
            make_layout(layout, "1", layers, {})
            found[name] = folder / f"{name}.tar"
            subprocess.run(["tar", "-cf", str(found[name]), "-C", str(layout), "."], check=True, timeout=60)
        yield found
    finally:
        shutil.rmtree(folder)


def run(banger: Instance, image: str, script: str) -> list[str]:
    return banger.ok("vm", "run", "--rm", "--quiet", "--image", image, "--", "sh", "-c", script).text.split(
        "\n"
    )[:-1]


def test_the_catalogs_kernels_are_those_of_this_test() -> None:
    assert set(RELEASES) == set(catalog.KERNELS)


@pytest.mark.parametrize("kernel", list(RELEASES))
def test_a_guest_boots_on_each_release(banger: Instance, archives: dict[str, Path], kernel: str) -> None:
    name = f"on-{kernel}"
    banger.ok("image", "pull", "--file", str(archives["plain"]), "--name", name, "--kernel", kernel)
    said = run(
        banger,
        name,
        """
        uname -r
        modprobe -a bridge br_netfilter nf_tables nft_compat ip_tables veth fuse tun wireguard loop || exit
        for name in bridge nf_tables veth fuse tun wireguard loop; do
            [ -d /sys/module/$name ] || echo no $name
        done
        cd /lib/modules/$(uname -r)
        [ -e modules.dep ] && ls kernel | busybox grep -c .
        echo mine > added; cat added
        # no /sbin/modprobe here: the kernel asks the agent
        busybox ip link add link0 type dummy && ls /sys/class/net | busybox grep link0
        busybox mount -t erofs none / 2>/dev/null; [ -d /sys/module/erofs ] && echo erofs
        """,
    )
    assert said[0].startswith(RELEASES[kernel])
    assert int(said[1]) > 3
    assert said[2:] == ["mine", "link0", "erofs"]
    banger.ok("image", "delete", name)


def test_a_kernel_of_ones_own_with_an_initrd(
    banger: Instance, archives: dict[str, Path], tmp_path: Path
) -> None:
    """Its initrd is there, banger's goes before it; the image's own modules of that release hide banger's."""
    folder = Path(banger.paths.kernels_dir, "debian-bookworm")
    shutil.copyfile(folder / "vmlinux", tmp_path / "vmlinux")
    shutil.copytree(folder / "modules", tmp_path / "modules", copy_function=shutil.copyfile)
    initrd = cpio.CpioWriter()
    initrd.add_file("init", b"#!/bin/no", mode=0o755)
    initrd.add_file("banger/files/etc/from-initrd", b"its own\n")
    (tmp_path / "initrd.img").write_bytes(gzip.compress(initrd.finish()))
    banger.ok("kernel", "import", "mine", "--from", str(tmp_path))
    kernel = ("--kernel", "mine")
    banger.ok("image", "pull", "--file", str(archives["own"]), "--name", "own", *kernel)
    said = run(
        banger,
        "own",
        """
        cat /etc/from-initrd
        cd /lib/modules/$(uname -r); ls . kernel; cat kernel/mine
        cat /var/lib/docker/volumes/one; busybox grep -o ' /var/lib/[a-z]* [a-z0-9]*' /proc/mounts
        """,
    )
    assert said == [
        "its own",
        *(".:", "kernel", "", "kernel:", "mine", "the image's"),
        "a volume",
        *(f" /var/lib/{name} ext4" for name in ("docker", "containerd", "containers")),
    ]

    refused = banger.banger("kernel", "rm", "mine")
    assert refused.status == 1
    assert "in use by 1 image" in refused.stderr
    assert "own" in refused.stderr
    assert "mine" in banger.ok("kernel", "list").text
    banger.ok("image", "delete", "own")
    assert banger.ok("kernel", "rm", "mine").text == "mine\n"
    assert "mine" not in banger.ok("kernel", "list").text
    available = json.loads(banger.ok("kernel", "list", "--available", "--json").text)
    assert {one["name"] for one in available if one["here"]} == set(RELEASES)
