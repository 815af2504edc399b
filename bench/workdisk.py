"""Making a work disk from a seed, beside mke2fs alone on an empty disk of the same size and on the same tar.

Disks of 1, 8 and 128 GiB; the catalog image's own seed, and one of 20,000 files of 2 KiB. Then what a seed
costs to be made anew for another key, which happens once.
"""

from __future__ import annotations

import asyncio
import io
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from banger.image import seeds
from banger.image.initramfs import GuestFile
from banger.system import ext4
from bench.harness import Sample, p50, rounds, table, wall
from tests.artifacts import artifacts

FILES = 20_000
GIB = 1 << 30
SIZES = (1, 8, 128)
KEY = GuestFile(path=".ssh/authorized_keys", content=b"ssh-ed25519 AAAA bench\n", mode=0o600)


def many_files(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
        for number in range(FILES):
            if number % 100 == 0:
                folder = tarfile.TarInfo(f"./d{number // 100}")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                out.addfile(folder)
            info = tarfile.TarInfo(f"./d{number // 100}/f{number}")
            info.size = 2048
            out.addfile(info, io.BytesIO(bytes([number % 256]) * 2048))


def timed(work: Callable[[], object]) -> Sample:
    began = time.perf_counter()
    work()
    return Sample((time.perf_counter() - began) * 1000)


def run(count: int) -> str:
    made = artifacts()
    folder = Path(tempfile.mkdtemp(prefix="bench-workdisk-", dir=made.home.parent))
    disk = folder / "disk"
    said: list[str] = []
    try:
        (folder / "many").mkdir()
        (folder / "own").mkdir()
        shutil.copyfile(made.work_seed, folder / "own/work-seed.tar")
        many_files(folder / "many/work-seed.tar")
        anew: dict[str, list[float]] = {"own": [], "many": []}
        for name, taken in anew.items():
            for number in range(min(count, 5)):
                seed = folder / name / "work-seed.tar"
                work = timed(lambda s=seed, n=number: seeds.prepare(s, rootfs="", key=f"k{n}", files=[KEY]))  # type: ignore[misc]
                taken.append(work.wall_ms)

        def alone(size: int, tar: Path | None) -> Sample:
            disk.unlink(missing_ok=True)
            making = ext4.make(disk, size_bytes=size * GIB, programs=made.e2fsprogs, tar=tar, label="x")
            return timed(lambda: asyncio.run(making))

        def ours(size: int, name: str) -> Sample:
            disk.unlink(missing_ok=True)
            seed = folder / name / "work-seed.tar"
            making = seeds.make_work_disk(disk, size_bytes=size * GIB, seed=seed, programs=made.e2fsprogs)
            return timed(lambda: asyncio.run(making))

        for size in SIZES:
            cases: dict[str, Callable[[], Sample]] = {
                "mke2fs, empty": lambda size=size: alone(size, None),  # type: ignore[misc]
                "image's seed": lambda size=size: ours(size, "own"),  # type: ignore[misc]
                "mke2fs, 20,000 files": lambda size=size: alone(size, folder / "many/work-seed.tar"),  # type: ignore[misc]
                "20,000 files": lambda size=size: ours(size, "many"),  # type: ignore[misc]
            }
            found = rounds(cases, count)
            said.append(f"{size} GiB\n\n{table(found, baseline='mke2fs, empty')}\n")
            ratio = wall(found["20,000 files"]) / wall(found["mke2fs, 20,000 files"])
            said.append(f"20,000 files to mke2fs with the same tar: {ratio:.2f}\n")
    finally:
        shutil.rmtree(folder)
    own, many = p50(anew["own"]), p50(anew["many"])
    said.append(f"A seed made anew for another key: the image's {own:.0f} ms, of 20,000 files {many:.0f} ms.")
    return "\n".join(said)
