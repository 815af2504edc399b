"""Building the default image: killed half-way, and two builders at once. Takes a minute of mmdebstrap."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from banger.system.run import run
from tests.artifacts import IMAGE, REPOSITORY, artifacts, services
from tests.capabilities import require

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.limit(1800),
    require("mmdebstrap"),
]

BUILDER = f"""
import asyncio, sys
from pathlib import Path
from tests.artifacts import services
_, images, _ = services(Path(sys.argv[1]))
print(asyncio.run(images.resolve({IMAGE!r}, lambda event: print(event.message, flush=True))).id)
"""


def builder(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(home)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_below(folder: Path) -> list[str]:
    """Processes that have their root, their working directory or an argument below a folder."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            places = [os.readlink(entry / "cwd"), os.readlink(entry / "root")]
            words = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if any(str(folder) in text for text in [*places, *words]):
            found.append(" ".join(words))
    return found


async def until_nothing_runs_below(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while found := processes_below(folder):
        assert time.monotonic() < deadline, f"still running: {found}"
        await asyncio.sleep(0.1)


async def test_killed_half_way_then_two_at_once(tmp_path: Path) -> None:
    made = artifacts()
    home = tmp_path / "home"
    images_dir = Path(made.seed_home(home).images_dir)
    await run(["rm", "-rf", str(images_dir)], timeout_s=60)

    first = builder(home)
    assert first.stdout is not None
    for line in first.stdout:
        if "installing essential packages" in line:
            break
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(timeout=30)
    first.stdout.close()
    assert [path.name for path in images_dir.iterdir() if not path.name.startswith(".")] == []
    # mmdebstrap had a session of its own, out of the kill's reach: it ends with its parent, mounts and all
    await until_nothing_runs_below(images_dir)
    assert str(images_dir) not in Path("/proc/self/mountinfo").read_text()
    assert (images_dir / f".build-{IMAGE}").exists()

    both = [builder(home), builder(home)]
    said = [await asyncio.to_thread(process.communicate, timeout=900) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    ids = [out.split()[-1] for out, _ in said]
    assert ids[0] == ids[1]
    assert sum("creating tarball" in out for out, _ in said) == 1
    assert sorted(path.name for path in images_dir.iterdir()) == sorted([f".lock-{IMAGE}", ids[0]])
    assert str(images_dir) not in Path("/proc/self/mountinfo").read_text()
    _, images, _ = services(home)
    image = await images.resolve(IMAGE)
    assert (image.id, image.recipe) == (ids[0], "debian bookworm")
