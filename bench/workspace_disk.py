"""A workspace off a dead VM's work disk, beside `cp -r` of the same folder and `debugfs rdump` off the disk.

A repository of 20,000 files of 2 KiB in one commit, and one with a blob of 200 MiB that is not committed.
Staged: read, laid out, made a repository, and looked through for what a crash tore.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from banger.image.diskfolder import DiskFolders
from banger.system import ext4
from banger.system.ext4 import E2fsprogs
from banger.workspace.stage import stage_disk
from bench.harness import Sample, rounds, table
from tests.artifacts import artifacts

FILES = 20_000
BLOB = 200 << 20
ENV = {"PATH": os.environ.get("PATH", ""), "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": "/nonexistent"}
WHO = ("-c", "user.name=a", "-c", "user.email=a@example.org")


def many(top: Path) -> None:
    for number in range(FILES):
        path = top / f"d{number // 100}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(1024) * 2)
    git(top, "add", ".")
    git(top, *WHO, "commit", "-q", "-m", "many")


def large(top: Path) -> None:
    git(top, *WHO, "commit", "-q", "--allow-empty", "-m", "none")
    with (top / "blob").open("wb") as file:
        for _ in range(BLOB >> 20):
            file.write(os.urandom(1 << 20))


def git(top: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-c", "gc.auto=0", *words],
        cwd=top,
        env=ENV,
        check=True,
        timeout=600,
        stdout=subprocess.DEVNULL,
    )


def disk_of(folder: Path, fill: Callable[[Path], None], programs: E2fsprogs) -> Path:
    top = folder / "root/repo"
    top.mkdir(parents=True)
    git(top, "init", "-q", "-b", "main")
    fill(top)
    git(top, "gc", "-q")
    tar = folder / "tar"
    subprocess.run(["tar", "-C", folder / "root", "-cf", tar, "."], check=True, timeout=600)
    asyncio.run(ext4.make(folder / "disk", size_bytes=1 << 30, programs=programs, tar=tar))
    tar.unlink()
    return folder / "disk"


def run(count: int) -> str:
    programs = artifacts().e2fsprogs
    home = Path(tempfile.mkdtemp(prefix="bench-workspace-", dir=artifacts().home.parent))
    out = home / "out"
    said: list[str] = []

    async def no_programs() -> E2fsprogs:
        return programs

    def timed(work: Callable[[], object]) -> Sample:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(mode=0o700)
        began = time.perf_counter()
        work()
        return Sample((time.perf_counter() - began) * 1000)

    try:
        for name, fill in ((f"{FILES:,} files", many), (f"a blob of {BLOB >> 20} MiB", large)):
            (home / "made").mkdir()
            disk = disk_of(home / "made", fill, programs)
            reader = DiskFolders(no_programs)

            def tar(disk: Path = disk, reader: DiskFolders = reader) -> None:
                with (out / "tar").open("wb", buffering=0) as file:
                    asyncio.run(reader.read(str(disk), "repo", file))

            def stage(disk: Path = disk, reader: DiskFolders = reader) -> None:
                asyncio.run(stage_disk(str(disk), "repo", str(out), read_disk=reader.read))

            def rdump(disk: Path = disk) -> None:
                subprocess.run(
                    [programs.debugfs, "-R", f"rdump /repo {out}", disk],
                    check=True,
                    timeout=600,
                    env={**ENV, **programs.env},
                    capture_output=True,
                )

            def copy(top: Path = home / "made/root/repo") -> None:
                subprocess.run(["cp", "-r", top, out], check=True, timeout=600)

            cases: dict[str, Callable[[], Sample]] = {
                "cp -r": lambda c=copy: timed(c),  # type: ignore[misc]
                "debugfs rdump": lambda c=rdump: timed(c),  # type: ignore[misc]
                "the tar": lambda c=tar: timed(c),  # type: ignore[misc]
                "staged": lambda c=stage: timed(c),  # type: ignore[misc]
            }
            said.append(f"{name}\n\n{table(rounds(cases, min(count, 7)), baseline='cp -r')}\n")
            shutil.rmtree(home / "made")
    finally:
        shutil.rmtree(home)
    return "\n".join(said)
