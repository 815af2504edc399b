"""Locks, staging and publication: all or nothing, one at a time."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.image import staging
from banger.image.errors import ImageError

pytestmark = pytest.mark.anyio


async def make(final: Path, content: str, log: list[str]) -> None:
    async with staging.staged(final, already=final.is_dir, waiting=lambda: log.append("waits")) as folder:
        if folder is None:
            log.append("there")
            return
        log.append("makes")
        (folder / "file").write_text(content)
        await asyncio.sleep(0.05)
        assert not final.exists()


async def test_published_at_once(tmp_path: Path) -> None:
    log: list[str] = []
    await asyncio.gather(*(make(tmp_path / "x", str(n), log) for n in range(3)))
    assert log.count("makes") == 1
    assert log.count("there") == 2
    assert log.count("waits") == 2
    assert (tmp_path / "x/file").read_text() in "012"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock-x", "x"]


async def test_failure_and_cancellation_leave_nothing(tmp_path: Path) -> None:
    async def fail() -> None:
        async with staging.staged(tmp_path / "x") as folder:
            assert folder is not None
            (folder / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    task = asyncio.create_task(make(tmp_path / "x", "y", []))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path.name for path in tmp_path.iterdir()] == [".lock-x"]


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from banger.image import staging
async def main():
    async with staging.staged(Path(sys.argv[1])) as folder:
        (folder / "deep").mkdir()
        (folder / "deep/file").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_a_killed_maker_leaves_staging_which_the_next_removes(tmp_path: Path) -> None:
    final = tmp_path / "x"
    argv = [sys.executable, "-c", KILLED, str(final)]
    env = {"PYTHONPATH": ":".join(sys.path)}
    await asyncio.to_thread(subprocess.run, argv, check=False, timeout=30, env=env)
    assert (tmp_path / ".staging-x/deep/file").exists()
    assert not final.exists()
    await make(final, "whole", [])
    assert (final / "file").read_text() == "whole"
    assert not (final / "deep").exists()
    assert not (tmp_path / ".staging-x").exists()


async def test_a_sweep_removes_what_killed_makers_left_and_nothing_of_those_that_live(tmp_path: Path) -> None:
    removed: list[str] = []

    async def remove(path: Path) -> None:
        if path.name == ".build-stuck":
            raise ImageError(ErrorCode.CLEANUP_FAILED, "something is mounted")
        staging.remove_tree(path)
        removed.append(path.name)

    for name in (
        ".staging-dead",
        ".build-dead",
        ".build-stuck",
        ".staging-alive",
        ".old-x",
        "whole",
        ".other",
    ):
        (tmp_path / name / "deep").mkdir(parents=True)
    # in another process, and its folder is made before anything in it
    with (tmp_path / ".lock-alive").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert await staging.sweep(tmp_path, remove) == removed == [".build-dead", ".old-x", ".staging-dead"]
        assert (tmp_path / ".staging-alive/deep").exists()
    assert await staging.sweep(tmp_path, remove) == [".staging-alive"]
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".lock-"))
    assert left == [".build-stuck", ".other", "whole"]
    assert await staging.sweep(tmp_path / "none", remove) == []


async def test_replacing(tmp_path: Path) -> None:
    for content in ("one", "two"):
        async with staging.staged(tmp_path / "x") as folder:
            assert folder is not None
            (folder / "file").write_text(content)
    assert (tmp_path / "x/file").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock-x", "x"]


async def test_lock_has_a_deadline(tmp_path: Path) -> None:
    async with staging.exclusive(tmp_path / "lock"):
        with pytest.raises(BangerError) as caught:
            async with staging.exclusive(tmp_path / "lock", timeout_s=0.15):
                pass
    assert caught.value.code is ErrorCode.BUSY


async def test_full_disk_has_its_code(tmp_path: Path) -> None:
    with pytest.raises(BangerError) as caught:
        async with staging.staged(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.code is ErrorCode.NO_SPACE
    assert caught.value.hint
    with pytest.raises(BangerError) as caught:
        staging.require_space(tmp_path, 1 << 60, what="it")
    assert caught.value.code is ErrorCode.NO_SPACE


def test_mount_points_are_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "/proc" in staging.mounts_below(Path("/"))
    assert staging.mounts_below(tmp_path) == []
    monkeypatch.setattr(staging, "mounts_below", lambda path: [f"{path}/proc"])
    (tmp_path / "x/proc").mkdir(parents=True)
    with pytest.raises(BangerError, match="something is mounted") as caught:
        staging.remove_tree(tmp_path / "x")
    assert caught.value.code is ErrorCode.CLEANUP_FAILED
    assert (tmp_path / "x/proc").exists()
