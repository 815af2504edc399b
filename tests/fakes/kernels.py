"""Kernels and modules made by hand: small, but with real headers."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def make_elf(parts: Sequence[tuple[int, bytes, int]], *, behind: bytes = b"") -> bytes:
    """An ELF64 of LOAD segments (physical address, content, size in memory), with `behind` after them."""
    table = bytearray()
    body = bytearray()
    begin = 4096
    for address, content, memory in parts:
        offset = begin + len(body)
        table += struct.pack("<IIQQQQQQ", 1, 5, offset, address, address, len(content), memory, 4096)
        body += content + bytes(-len(content) % 4096)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        2,
        62,
        1,
        parts[0][0],
        64,
        0,
        0,
        64,
        56,
        len(parts),
        64,
        0,
        0,
    )
    head = header + bytes(table)
    return head + bytes(begin - len(head)) + bytes(body) + behind


def make_bzimage(payload: bytes) -> bytes:
    """A boot sector, three setup sectors and the payload, 64 bytes into the protected-mode part."""
    image = bytearray(4 * 512 + 64) + payload
    image[0x1F1] = 3
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x020F)
    struct.pack_into("<II", image, 0x248, 64, len(payload))
    return bytes(image)


def make_module(name: str, depends: str = "", *, extra: bytes = b"") -> bytes:
    """An ELF64 object with a .modinfo section."""
    names = b"\0.modinfo\0.shstrtab\0"
    info = f"name={name}\0depends={depends}\0license=GPL\0".encode() + extra
    offset = 64
    table = offset + len(info) + len(names)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, offset, len(info), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, offset + len(info), len(names), 0, 0, 1, 0)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2
    )
    return header + info + names + sections
