"""The disk with a kernel's modules, by the real mke2fs: what is in it, and whose it is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from banger.image.modulesdisk import make_disk
from banger.model.progress import no_progress
from banger.system import ext4
from banger.system.run import run
from tests.artifacts import artifacts, services

pytestmark = [pytest.mark.anyio, pytest.mark.host]


async def test_everything_is_roots_and_nothing_leads_out(tmp_path: Path) -> None:
    base = await asyncio.to_thread(artifacts)
    _kernels, _images, tools = services(base.home)
    tree = tmp_path / "modules"
    (tree / "kernel/fs").mkdir(parents=True)
    (tree / "kernel/fs/a.ko").write_bytes(b"a" * 9000)
    (tree / "modules.dep").write_text("kernel/fs/a.ko:\n")
    (tree / "build").symlink_to("/usr/src")
    for path in (tree, *tree.rglob("*")):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    (tree / "kernel/fs/a.ko").chmod(0o666)
    disk = tmp_path / "modules.ext4"
    await make_disk(tree, disk, tools=tools, progress=no_progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["modules", "modules.ext4"]
    assert disk.stat().st_mode & 0o777 == 0o444
    programs = base.e2fsprogs
    await ext4.check(disk, programs=programs)

    async def ask(request: str) -> str:
        done = await run([programs.debugfs, "-R", request, str(disk)], timeout_s=30, env=programs.env)
        return done.stdout.decode()

    assert "build" not in await ask("ls -p /")
    assert await ask("cat /kernel/fs/a.ko") == "a" * 9000
    for name in ("/", "/kernel", "/kernel/fs/a.ko"):
        said = await ask(f"stat {name}")
        assert "User:     0   Group:     0" in said
    assert "Mode:  0644" in said
    features = await ask("features")
    assert "has_journal" not in features
