"""Files that somebody else writes to are cut to size, and stay readable and free of holes where they can."""

from __future__ import annotations

import os
from pathlib import Path

from banger.system.logcap import cut_head, punch_head

MIB = 1 << 20


def lines(first: int, last: int) -> bytes:
    return b"".join(b"line %08d\n" % number for number in range(first, last))


def test_an_appended_log_keeps_its_tail_from_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    writer = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        os.write(writer, lines(0, 10_000))
        inode = path.stat().st_ino
        assert not cut_head(str(path), limit_bytes=1_000_000, keep_bytes=1000)
        assert cut_head(str(path), limit_bytes=100_000, keep_bytes=1000)
        os.write(writer, lines(10_000, 10_001))
    finally:
        os.close(writer)
    kept = path.read_bytes()
    assert kept == lines(10_001 - kept.count(b"\n"), 10_001)
    assert 900 < len(kept) <= 1100
    assert path.stat().st_ino == inode, "whoever follows it goes on following it"


def test_one_long_line_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"x" * 100_000)
    assert cut_head(str(path), limit_bytes=50_000, keep_bytes=1000)
    assert path.read_bytes() == b"x" * 1000


def test_a_file_written_at_an_offset_keeps_its_size_and_loses_its_blocks(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    writer = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.write(writer, b"a" * (3 * MIB))
        os.fsync(writer)
        assert not punch_head(str(path), limit_bytes=4 * MIB, keep_bytes=MIB)
        assert punch_head(str(path), limit_bytes=2 * MIB, keep_bytes=MIB)
        os.write(writer, b"b")
        os.fsync(writer)
    finally:
        os.close(writer)
    status = path.stat()
    assert status.st_size == 3 * MIB + 1
    assert status.st_blocks * 512 <= MIB + 64 * 1024
    assert path.read_bytes()[-3:] == b"aab"
    assert path.read_bytes()[: 2 * MIB] == bytes(2 * MIB)


def test_no_file_and_a_link_in_its_place(tmp_path: Path) -> None:
    assert not cut_head(str(tmp_path / "none"), limit_bytes=1, keep_bytes=1)
    assert not punch_head(str(tmp_path / "none"), limit_bytes=1, keep_bytes=1)
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * 100_000)
    (tmp_path / "link").symlink_to(precious)
    for cap in (cut_head, punch_head):
        try:
            cap(str(tmp_path / "link"), limit_bytes=10, keep_bytes=5)
        except OSError:
            continue
        raise AssertionError("a link was followed")
    assert precious.stat().st_size == 100_000
