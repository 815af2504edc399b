"""Decompression of hostile input in bounded steps: gzip, xz, lzma, bzip2, zstd and the kernel's lz4.

`decompressed(chunks, kind, limit=…)` is a generator of byte chunks that never holds more than a few MiB
and raises IMAGE_INVALID for anything broken, truncated or larger than its limit. Pure; blocking (CPU).
"""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import lz4.block
from backports import zstd

from banger.image.errors import invalid

STEP = 1 << 20
XZ_MEMORY_LIMIT = 256 << 20
"""Debian's packages need 65 MiB (xz -9 has a 64 MiB dictionary)."""
ZSTD_WINDOW_LOG_MAX = 27
LZ4_LEGACY_MAGIC = 0x184C2102
LZ4_LEGACY_BLOCK = 8 << 20
"""lz4's "legacy" frame, which kernels use: blocks of at most 8 MiB of content."""

MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (struct.pack("<I", LZ4_LEGACY_MAGIC), "lz4"),
    (b"\x5d\x00\x00", "lzma"),
    # skippable frames (RFC 8878, 3.1.2), which may stand in front of the others
    *((struct.pack("<I", 0x184D2A50 + number), "zstd") for number in range(16)),
)


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """zlib's object with the interface of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self._cut = False  # the last output was as long as allowed: there may be more inside

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not (self._cut or self._inner.unconsumed_tail or self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        piece = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self._cut = len(piece) == max_length
        return piece


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY_LIMIT)


def _lzma() -> _Decompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=XZ_MEMORY_LIMIT)


def _zstd() -> _Decompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX})


_FACTORIES: dict[str, Callable[[], _Decompressor]] = {
    "gzip": _Gzip,
    "xz": _xz,
    "lzma": _lzma,
    "bzip2": bz2.BZ2Decompressor,
    "zstd": _zstd,
}


def recognise(head: bytes) -> str:
    """The kind of compression that data beginning with `head` (6 bytes do) has, or "none"."""
    return next((kind for magic, kind in MAGICS if head.startswith(magic)), "none")


def decompressed(
    chunks: Iterable[bytes], kind: str, *, limit: int, what: str, trailing: bool = False
) -> Iterator[bytes]:
    """The content of `chunks`, at most `limit` bytes of it. what: named in errors.

    Concatenated members count as one. trailing: bytes after the end are ignored (a kernel's payload
    carries its own length there); otherwise they are an error.
    """
    total = 0
    for piece in _pieces(chunks, kind, what=what, trailing=trailing):
        total += len(piece)
        if total > limit:
            raise invalid(f"{what} unpacks to more than {limit >> 20} MiB")
        yield piece


def _pieces(chunks: Iterable[bytes], kind: str, *, what: str, trailing: bool) -> Iterator[bytes]:
    if kind == "none":
        yield from chunks
        return
    if kind == "lz4":
        yield from _lz4_legacy(chunks, what=what)
        return
    factory = _FACTORIES.get(kind)
    if factory is None:
        raise invalid(f"{what} has an unknown compression: {kind}")
    decompressor = factory()
    try:
        for chunk in chunks:
            data = chunk
            while True:
                if decompressor.eof:
                    if not data:
                        break
                    if trailing:
                        return
                    decompressor = factory()
                piece = decompressor.decompress(data, STEP)
                data = b""
                if piece:
                    yield piece
                if decompressor.eof:
                    data = decompressor.unused_data
                elif decompressor.needs_input:
                    break
    except (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError, EOFError, ValueError, MemoryError) as error:
        raise invalid(f"{what} is not valid {kind} data", details=str(error)) from error
    if not decompressor.eof:
        raise invalid(f"{what} ends in the middle of its {kind} data")


def _lz4_legacy(chunks: Iterable[bytes], *, what: str) -> Iterator[bytes]:
    """Blocks of `u32 length, data` behind the magic; less than a full block is the last one.

    What follows a block and is no length of another (a kernel's own u32 size, zeros) ends the data.
    """
    data = b"".join(chunks)
    view = memoryview(data)
    if len(data) < 8 or data[:4] != struct.pack("<I", LZ4_LEGACY_MAGIC):
        raise invalid(f"{what} is not valid lz4 data")
    position = 4
    full = True
    while full and position + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, position)
        if length == LZ4_LEGACY_MAGIC:  # a frame after a frame
            position += 4
            continue
        if length == 0 or position + 4 + length > len(data):
            break
        try:
            piece = lz4.block.decompress(
                view[position + 4 : position + 4 + length], uncompressed_size=LZ4_LEGACY_BLOCK
            )
        except (lz4.block.LZ4BlockError, ValueError, MemoryError) as error:
            raise invalid(f"{what} is not valid lz4 data", details=str(error)) from error
        yield piece
        position += 4 + length
        full = len(piece) == LZ4_LEGACY_BLOCK
    if position == 4:
        raise invalid(f"{what} ends in the middle of its lz4 data")


class ChunkReader(io.RawIOBase):
    """A file object over chunks, for tarfile's stream mode. Read-only, forward-only."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer)  # type: ignore[arg-type]
        while not self._rest:
            try:
                self._rest = memoryview(next(self._chunks))
            except StopIteration:
                return 0
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
