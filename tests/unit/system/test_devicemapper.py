"""Device-mapper tables and status lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.system import devicemapper as dm


def test_the_base_is_the_image_with_zeros_behind_it() -> None:
    assert dm.base_table("/dev/loop0", base_bytes=1 << 20, size_bytes=4 << 20) == (
        "0 2048 linear /dev/loop0 0\n2048 6144 zero\n"
    )
    assert (
        dm.base_table("/dev/loop0", base_bytes=1 << 20, size_bytes=1 << 20) == "0 2048 linear /dev/loop0 0\n"
    )


def test_the_snapshot_is_persistent_and_in_blocks_of_the_file_system() -> None:
    table = dm.snapshot_table("/dev/dm-0", "/dev/loop1", size_bytes=4 << 20)
    assert table == "0 8192 snapshot /dev/dm-0 /dev/loop1 P 8\n"


@given(st.integers(1, 1 << 37))
def test_the_store_has_room_for_every_block_and_its_table(size: int) -> None:
    chunks = -(-size // 4096)
    tables = -(-chunks // 256)  # 16 bytes an exception, 256 in a chunk
    assert dm.cow_bytes(size) >= (chunks + tables + 1) * 4096 or size < 4096


def test_status_lines() -> None:
    assert dm.parse_status("0 16384 snapshot 16/32768 16\n") == dm.SnapshotStatus(used=8192, total=16777216)
    assert dm.parse_status("0 16384 snapshot Invalid").broken == "invalid"
    assert dm.parse_status("0 16384 snapshot Merge failed").broken == "merge failed"
    for line in ("", "0 1 linear 7:0 0", "x"):
        with pytest.raises(ValueError):
            dm.parse_status(line)


@given(st.text(max_size=100))
def test_any_other_line_is_a_value_error_or_broken(text: str) -> None:
    try:
        status = dm.parse_status(f"0 1 snapshot {text}")
    except ValueError:
        return
    assert status.broken or status.total >= 0
