"""Tests in the lab host: an instance's home with the artifacts, and nothing left on the host after each."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.system import devicemapper, loops
from banger.system.kvm import kvm_status

HOME = Path(os.environ.get("BANGER_LAB_HOME", "/root/home"))
"""Has the artifacts, on the same disk: a copy of a root file system takes long in the lab."""


@pytest.fixture(scope="module", autouse=True)
def _kvm_is_known() -> None:
    """Kept per process: the daemons are forked from this one, and need not probe again."""
    asyncio.run(kvm_status())


@pytest.fixture
def home() -> Iterator[Path]:
    """An instance's home of which only the images, kernels and tools stay."""
    yield HOME
    left = [path.name for path in Path(HOME, "state/vms").glob("*")]
    for path in Path(HOME, "state").iterdir():
        if path.name not in ("images", "kernels", "tools"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not left, f"VM folders are left: {left}"


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    found = [f"dm {target.name}" for target in devicemapper.list_targets()]
    found += [f"loop {loop.device} over {loop.backing_file}" for loop in loops.list_loops()]
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout)
    found += [f"link {link['ifname']}" for link in links if link["ifname"] != "lo"]
    assert not found, "left on the host: " + ", ".join(found)
