"""Real kernel objects for tests: a network namespace each, an instance's home, the leak check."""

from __future__ import annotations

import ctypes
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from banger.config.paths import Paths, resolve_paths
from banger.helper import validate
from banger.helper.inprocess import InProcessHelper
from tests import capabilities, leaks

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True)
def no_leaks(tmp_path: Path) -> Iterator[None]:
    """After every host test: nothing is on the host that was not there before."""
    before = leaks.snapshot(tmp_path)
    yield
    left = leaks.difference(before, leaks.snapshot(tmp_path))
    assert not left, "left on the host:\n  " + "\n  ".join(left)


@pytest.fixture
def netns(no_leaks: None, tmp_path: Path) -> Iterator[None]:
    """This thread, and what it starts, in a fresh network namespace, which must be empty at the end."""
    capabilities.demand("netns")
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=30)
            before = leaks.snapshot(tmp_path, all_links=True)
            yield
            left = leaks.difference(before, leaks.snapshot(tmp_path, all_links=True))
        finally:
            if _libc.setns(home, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(home)
    assert not left, "left in the test's namespace:\n  " + "\n  ".join(left)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """An instance's folders below the test's own; vms_dir and images_dir are there."""
    found = resolve_paths({"BANGER_HOME": str(tmp_path / "home")})
    for folder in (found.vms_dir, found.images_dir):
        os.makedirs(folder, mode=0o700)
    return found


@pytest.fixture
def instance() -> str:
    """An instance's mark: 16 hex digits."""
    return secrets.token_hex(8)


@pytest.fixture
async def helper(netns: None, paths: Paths, instance: str) -> AsyncIterator[InProcessHelper]:
    """The privileged operations, executed here; `sleep` counts as a monitor."""
    made = InProcessHelper(instance, paths, programs=validate.MONITOR_PROGRAMS | {"sleep"})
    yield made
    await made.close()
