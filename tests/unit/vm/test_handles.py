"""The scratch file and the cache: round trip, missing, corrupt, cleared."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.model.records import ProcessIdentity, VMHandles
from banger.vm.handles import SCRATCH_FILE, HandleCache, read_scratch, write_scratch

BOOT = "0a1b2c3d-0000-0000-0000-000000000000"
MONITOR = ProcessIdentity(role="monitor", pid=42, start_time=4711)
TEXT = st.text(max_size=20)


@given(TEXT, TEXT, TEXT, st.integers(1, 2**22), st.integers(0, 2**63 - 1))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, tap: str, loop: str, dm: str, pid: int, start: int
) -> None:
    folder = str(tmp_path_factory.mktemp("vm"))
    process = ProcessIdentity(role="monitor", pid=pid, start_time=start)
    handles = VMHandles(boot_id=BOOT, processes=(process,), tap_device=tap, base_loop=loop, dm_name=dm)
    write_scratch(folder, handles)
    assert read_scratch(folder).handles == handles


def test_a_missing_file_is_empty_and_no_problem(tmp_path: Path) -> None:
    read = read_scratch(str(tmp_path))
    assert read.missing
    assert read.handles.is_empty()
    assert not read.problem


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"processes": 3}', b"\xff\xfe", b"x" * 100_000])
def test_a_corrupt_file_is_named_and_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SCRATCH_FILE).write_bytes(content)
    read = read_scratch(str(tmp_path))
    assert read.handles.is_empty()
    assert SCRATCH_FILE in read.problem


def test_the_cache_writes_the_file_first_and_clears_both(tmp_path: Path) -> None:
    cache = HandleCache(BOOT)
    folder = str(tmp_path)
    cache.change("v", folder, tap_device="tap-pool-1")
    cache.change("v", folder, processes=(MONITOR,))
    assert read_scratch(folder).handles == cache.get("v")
    assert cache.get("v") == VMHandles(boot_id=BOOT, processes=(MONITOR,), tap_device="tap-pool-1")
    cache.clear("v", folder)
    assert cache.get("v").is_empty()
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_memory_as_it_was(tmp_path: Path) -> None:
    cache = HandleCache(BOOT)
    with pytest.raises(FileNotFoundError):
        cache.change("v", str(tmp_path / "gone"), tap_device="tap-pool-1")
    assert cache.get("v").is_empty()


def test_the_file_is_private(tmp_path: Path) -> None:
    write_scratch(str(tmp_path), VMHandles(boot_id=BOOT, tap_device="t"))
    assert (tmp_path / SCRATCH_FILE).stat().st_mode & 0o777 == 0o600


def test_no_handles_no_file(tmp_path: Path) -> None:
    write_scratch(str(tmp_path), VMHandles(boot_id=BOOT, tap_device="t"))
    write_scratch(str(tmp_path), VMHandles(boot_id=BOOT))
    assert not list(tmp_path.iterdir())
