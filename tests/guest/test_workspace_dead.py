"""A workspace out of a guest without git, and off the disk of one that was killed or has panicked.

What the guest had flushed is there, commits, staged and loose files; what it was just writing is whole, or
gone.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from banger.image.diskfolder import DiskFolders
from banger.system.ext4 import E2fsprogs
from banger.workspace.service import Staged
from banger.workspace.stage import stage_disk, stage_guest
from tests.artifacts import artifacts
from tests.guest.instance import Instance
from tests.guest.test_recovery import monitor_pid

pytestmark = [pytest.mark.guest, pytest.mark.anyio]

MAKE = """
set -e
mkdir /root/repo; cd /root/repo
git init -q -b main
for name in kept staged changed gone; do echo $name > $name; done
git add .; git commit -q -m first; git gc -q; git branch side
echo more > more; git add .; git commit -q -m second
echo stashed > kept; git stash -q
echo staged-now > staged; git add staged
echo changed-now > changed; rm gone; echo new > new
printf '#!/bin/sh\\n' > tool; chmod 755 tool; ln -s /etc/passwd link
git init -q inner; git -C inner commit -q --allow-empty -m inner
head -c 3000000 /dev/urandom > blob; truncate -s 100M sparse
sync
"""
SHOW = """
cd /root/repo; git rev-parse HEAD main side refs/stash; git symbolic-ref HEAD
git ls-files -s; git status --porcelain -unormal; git hash-object blob sparse
"""
WRITE = """
cd /root/repo; i=0
while :; do
  i=$((i+1)); echo $i > loose-$i; echo $i > kept; git commit -q -a -m "loop $i"; echo $i > /run/loops
done
"""
PANIC = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger"


def configure(banger: Instance, name: str) -> None:
    who = "git config --global user.name a; git config --global user.email a@example.org"
    banger.ok("vm", "exec", name, "--", "sh", "-c", who + MAKE)


def shown(banger: Instance, name: str) -> str:
    return banger.ok("vm", "exec", name, "--", "sh", "-c", SHOW).text


async def shown_here(staged: Staged) -> str:
    said = b""
    for words in (
        ("rev-parse", "HEAD", "main", "side", "refs/stash"),
        ("symbolic-ref", "HEAD"),
        ("ls-files", "-s"),
        ("status", "--porcelain", "-unormal"),
        ("hash-object", "blob", "sparse"),
    ):
        done = await staged.repository.git(*words)
        assert done.status == 0, (words, done.stderr)
        said += done.stdout
    return said.decode()


def staging(tmp_path: Path) -> str:
    made = tmp_path / "incoming"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(0o700)
    return str(made)


async def off_disk(banger: Instance, name: str, tmp_path: Path) -> Staged:
    async def programs() -> E2fsprogs:
        return artifacts().e2fsprogs

    reader = DiskFolders(programs)
    return await stage_disk(
        str(banger.vm_dir(name) / "work.ext4"), "repo", staging(tmp_path), read_disk=reader.read
    )


async def check_whole(staged: Staged, first: str) -> None:
    """Whatever was being written: all that the refs reach is there, and begins with what was flushed."""
    walked = await staged.repository.git("rev-list", "--objects", "--all", "HEAD")
    assert walked.status == 0, walked.stderr
    assert first in walked.stdout.decode()


async def test_a_workspace_outlives_its_guest(banger: Instance, tmp_path: Path) -> None:
    """One guest, two boots: copied out while it runs, read after kill -9, read after a panic."""
    banger.ok("vm", "run", "--name", "dies", "-d")
    configure(banger, "dies")
    before = shown(banger, "dies")
    head = before.split("\n", 1)[0]
    inside = re.sub(r"\?\? inner/\n", "", before)  # adopted repositories inside are kept on their own

    live = await stage_guest(str(banger.vm_dir("dies")), "/root/repo", staging(tmp_path))
    assert live.notes == ()
    assert await shown_here(live) in (before, inside)
    sparse = tmp_path / "incoming/tree/sparse"
    assert (sparse.stat().st_size, sparse.stat().st_blocks) == (100 << 20, 0)
    inner = await live.repository.sub(b"inner")
    assert inner is not None
    assert (await inner.git("log", "--format=%s")).stdout == b"inner\n"

    pid = monitor_pid(banger.vm_dir("dies"))
    os.kill(pid, signal.SIGKILL)
    banger.until_state("dies", "stopped", "error")
    dead = await off_disk(banger, "dies", tmp_path)
    assert dead.notes == ()
    assert await shown_here(dead) in (before, inside)

    banger.ok("vm", "start", "dies")
    banger.ok("vm", "exec", "-d", "dies", "--", "sh", "-c", WRITE)
    banger.ok("vm", "exec", "dies", "--", "sh", "-c", "until [ -s /run/loops ]; do :; done")
    banger.banger("vm", "exec", "-d", "dies", "--", "sh", "-c", PANIC)
    banger.until_state("dies", "error", "stopped")
    panicked = await off_disk(banger, "dies", tmp_path)
    await check_whole(panicked, head)
    subjects = (await panicked.repository.git("log", "--format=%s")).stdout.decode().splitlines()
    assert subjects[-2:] == ["second", "first"]
    banger.ok("vm", "delete", "dies")
