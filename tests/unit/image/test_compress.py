"""Bounded decompression, and the kernel's lz4, against the real compressors."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.image import compress


def lz4_legacy(data: bytes) -> bytes:
    out = bytearray(struct.pack("<I", compress.LZ4_LEGACY_MAGIC))
    for begin in range(0, max(len(data), 1), compress.LZ4_LEGACY_BLOCK):
        block = lz4.block.compress(data[begin : begin + compress.LZ4_LEGACY_BLOCK], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return bytes(out)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, preset=0),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE, preset=0),
    "bzip2": bz2.compress,
    "zstd": zstd.compress,
    "lz4": lz4_legacy,
}
kinds = pytest.mark.parametrize("kind", sorted(COMPRESSORS))


def unpack(
    data: bytes, kind: str, *, limit: int = 64 << 20, step: int = 1 << 16, trailing: bool = False
) -> bytes:
    chunks = [data[begin : begin + step] for begin in range(0, len(data), step)]
    return b"".join(compress.decompressed(chunks, kind, limit=limit, what="it", trailing=trailing))


@kinds
@pytest.mark.parametrize("size", [0, 1, 1000, compress.STEP, 3 * compress.STEP + 17])
def test_round_trip(kind: str, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    packed = COMPRESSORS[kind](data)
    assert compress.recognise(packed) == kind
    for step in (1 << 16, 7 if len(packed) < 10_000 else 1 << 20):
        assert unpack(packed, kind, step=step) == data


@kinds
@given(st.binary(max_size=2000), st.integers(1, 50))
def test_any_content_in_any_steps(kind: str, data: bytes, step: int) -> None:
    assert unpack(COMPRESSORS[kind](data), kind, step=step) == data


@kinds
def test_bombs_are_stopped_at_the_limit(kind: str) -> None:
    packed = COMPRESSORS[kind](bytes(20 << 20))
    got: list[int] = []
    pieces = compress.decompressed([packed], kind, limit=9 << 20, what="it")
    with pytest.raises(BangerError, match="unpacks to more than 9 MiB") as caught:
        got.extend(map(len, pieces))
    assert caught.value.code is ErrorCode.IMAGE_INVALID
    assert sum(got) <= 9 << 20


@pytest.mark.parametrize("kind", sorted(set(COMPRESSORS) - {"lz4"}))
def test_truncation_is_an_error(kind: str) -> None:
    packed = COMPRESSORS[kind](bytes(range(256)) * 100)
    for cut in (1, 5, len(packed) // 2, len(packed) - 1):
        with pytest.raises(BangerError):
            unpack(packed[:cut], kind)


@pytest.mark.parametrize("kind", ["gzip", "xz", "bzip2", "zstd"])
def test_members_behind_each_other(kind: str) -> None:
    pack = COMPRESSORS[kind]
    assert unpack(pack(b"one") + pack(b"two"), kind) == b"onetwo"
    assert unpack(pack(b"one") + b"\x12\x34\x56\x78", kind, trailing=True) == b"one"
    with pytest.raises(BangerError):
        unpack(pack(b"one") + b"garbage behind it", kind)


@pytest.mark.parametrize("number", [0, 7, 15])
@pytest.mark.parametrize("size", [0, 5, 3 * compress.STEP])
def test_skippable_frames_say_nothing(number: int, size: int) -> None:
    """pzstd has one in front of each frame, zstd:chunked its table of contents behind the last."""
    skippable = struct.pack("<II", 0x184D2A50 + number, size) + bytes(size)
    data = skippable + zstd.compress(b"one") + skippable * 2 + zstd.compress(b"two") + skippable
    assert compress.recognise(data) == "zstd"
    for step in (len(data), 1 << 20, 4096 if size > 5 else 1):
        assert unpack(data, "zstd", step=step) == b"onetwo"
    with pytest.raises(BangerError):
        unpack(data[:-1], "zstd")


def test_lz4_ends_at_what_is_no_block() -> None:
    full = bytes(compress.LZ4_LEGACY_BLOCK)
    assert unpack(lz4_legacy(full) + struct.pack("<I", len(full)), "lz4") == full
    assert unpack(lz4_legacy(b"short") + struct.pack("<I", 5), "lz4") == b"short"


@given(st.sampled_from(sorted(COMPRESSORS)), st.binary(max_size=400))
def test_garbage_is_a_clear_error_or_content(kind: str, data: bytes) -> None:
    magic = next(magic for magic, name in compress.MAGICS if name == kind)
    try:
        assert len(unpack(magic + data, kind, limit=32 << 20)) <= 32 << 20
    except BangerError:
        pass
