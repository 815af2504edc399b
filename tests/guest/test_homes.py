"""/root of guests: what the image has there arrives, and what was written there stays (SPEC §5)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.capabilities import require
from tests.fakes.ociregistry import busybox_tree, make_layout
from tests.guest.instance import Instance

pytestmark = [require("umoci", "busybox"), pytest.mark.guest]

LOOK = """
cd /root
for path in . .profile .config .config/deep tool short dangling same; do
    busybox stat -c '%n %F %a %u:%g' $path
done
busybox readlink short; busybox readlink dangling
[ .profile -ef same ] && echo linked
cat .config/deep
busybox grep -c banger .ssh/authorized_keys
"""
FOUND = """. directory 710 0:0
.profile regular file 644 0:0
.config directory 750 0:0
.config/deep regular file 600 0:0
tool regular file 755 0:0
short symbolic link 777 0:0
dangling symbolic link 777 0:0
same regular file 644 0:0
.config/deep
/nowhere/at/all
linked
deep
1
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = busybox_tree(tmp_path_factory.mktemp("home") / "tree")
    root = top / "root"
    (root / ".config").mkdir(parents=True)
    (root / ".profile").write_text("# from the image\n")
    (root / ".config/deep").write_text("deep\n")
    (root / "tool").write_text("#!/bin/sh\n")
    (root / "short").symlink_to(".config/deep")
    (root / "dangling").symlink_to("/nowhere/at/all")
    os.link(root / ".profile", root / "same")
    for name, mode in (("", 0o710), (".config", 0o750), (".config/deep", 0o600), ("tool", 0o755)):
        (root / name).chmod(mode)
    (root / ".profile").chmod(0o644)
    os.chown(root / "tool", 1000, 1000)  # a work disk is all root's
    return top


def test_an_oci_images_home_arrives_and_keeps_changes(banger: Instance, tree: Path, tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", "home", [tree], {})
    subprocess.run(
        ["tar", "-C", tmp_path / "layout", "-cf", tmp_path / "home.tar", "."], check=True, timeout=60
    )
    banger.ok("image", "pull", "--file", str(tmp_path / "home.tar"), "--name", "home")
    banger.ok("vm", "run", "-d", "--name", "pulled", "--image", "home")
    assert banger.ok("vm", "exec", "pulled", "sh", "-c", LOOK).text == FOUND
    change = "cd /root && echo mine > .profile && rm_() { busybox rm $1; }; rm_ short; busybox chmod 700 tool"
    banger.ok("vm", "exec", "pulled", "sh", "-c", change)
    banger.ok("vm", "restart", "pulled")
    look = "cd /root; cat .profile same; busybox stat -c %a tool; [ -L short ] || echo gone"
    assert banger.ok("vm", "exec", "pulled", "sh", "-c", look).text == "mine\nmine\n700\ngone\n"
    banger.ok("vm", "delete", "pulled")


def test_the_home_of_ones_own_file_system_arrives_with_todays_key(
    banger: Instance, tree: Path, tmp_path: Path
) -> None:
    rootfs = tmp_path / "mine.ext4"
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, rootfs, "64m"],
        check=True,
        timeout=60,
        env=env,
        capture_output=True,
    )
    image = json.loads(banger.ok("image", "show", "home", "--json").text)
    files = ("--rootfs", str(rootfs), "--kernel", image["kernel_path"], "--modules", image["modules_dir"])
    banger.ok("image", "register", "mine", *files)
    run = ("vm", "run", "--rm", "--quiet", "--image", "mine", "--", "sh", "-c")
    assert banger.ok(*run, LOOK).text == FOUND
    first = json.loads(banger.ok("image", "show", "mine", "--json").text)
    key = Path(banger.paths.ssh_dir, "id_ed25519")
    for path in (key, key.with_name("id_ed25519.pub")):
        path.unlink()
    assert banger.ok(*run, "cat /root/.ssh/authorized_keys").text == f"{public(key)}\n"
    second = json.loads(banger.ok("image", "show", "mine", "--json").text)
    field = "seeded_ssh_public_key_fingerprint"
    assert first[field].startswith("SHA256:")
    assert second[field].startswith("SHA256:")
    assert first[field] != second[field]
    banger.ok("image", "delete", "mine")


def public(key: Path) -> str:
    return key.with_name(f"{key.name}.pub").read_text().strip()


def test_debians_home_arrives(banger: Instance) -> None:
    script = "stat -c '%n %a %u:%g' ~ ~/.bashrc ~/.profile; findmnt -no FSTYPE /root"
    said = banger.ok("vm", "run", "--rm", "--quiet", "--", "bash", "-c", script).text
    assert said == "/root 700 0:0\n/root/.bashrc 644 0:0\n/root/.profile 644 0:0\next4\n"
