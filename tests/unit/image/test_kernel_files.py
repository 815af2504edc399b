"""bzImage, ELF, modules: kernels made by hand here, down to their headers."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import lz4.block
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError
from banger.image import bzimage, elf, modules
from banger.image.compress import LZ4_LEGACY_MAGIC
from tests.fakes.kernels import make_bzimage, make_elf, make_module


def pack(kind: str, kernel: bytes) -> bytes:
    length = struct.pack("<I", len(kernel))
    if kind == "gzip":
        return gzip.compress(kernel)  # its own last four bytes are the length
    if kind == "xz":
        return lzma.compress(kernel, preset=0) + length
    if kind == "zstd":
        return zstd.compress(kernel) + length
    block: bytes = lz4.block.compress(kernel, store_size=False)
    return struct.pack("<II", LZ4_LEGACY_MAGIC, len(block)) + block + length


@pytest.mark.parametrize("kind", ["gzip", "xz", "zstd", "lz4"])
def test_payload_is_found_and_unpacked(kind: str) -> None:
    kernel = make_elf([(0x1000, b"code" * 5000, 40_000)])
    assert bzimage.extract_kernel(make_bzimage(pack(kind, kernel))) == kernel
    assert bzimage.extract_kernel(kernel) == kernel


def test_payload_must_have_its_length() -> None:
    kernel = make_elf([(0x1000, b"code" * 5000, 40_000)])
    packed = lzma.compress(kernel, preset=0)
    with pytest.raises(BangerError, match="unpacks to"):
        bzimage.extract_kernel(make_bzimage(packed + struct.pack("<I", len(kernel) + 1)))
    with pytest.raises(BangerError, match="unpacks to 4294967295"):
        bzimage.extract_kernel(make_bzimage(packed + b"\xff\xff\xff\xff"))
    with pytest.raises(BangerError, match="no ELF"):
        bzimage.extract_kernel(make_bzimage(gzip.compress(b"something else")))


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        (0x202, b"XXXX", "not a kernel"),
        (0x1FE, b"\0\0", "not a kernel"),
        (0x206, b"\x07\x02", "boot protocol 2.07"),
        (0x248, b"\xff\xff\xff\x7f", "outside of its file"),
        (0x24C, b"\xff\xff\xff\x7f", "outside of its file"),
    ],
)
def test_broken_headers(field: int, value: bytes, text: str) -> None:
    image = bytearray(make_bzimage(gzip.compress(make_elf([(0, b"x", 1)]))))
    image[field : field + len(value)] = value
    with pytest.raises(BangerError, match=text):
        bzimage.extract_kernel(bytes(image))


@given(st.binary(max_size=600), st.binary(max_size=200))
def test_any_bytes_are_a_clear_error(head: bytes, tail: bytes) -> None:
    image = bytearray(make_bzimage(tail))
    image[0x1F1 : 0x1F1 + len(head)] = head
    for data in (head, bytes(image)):
        try:
            bzimage.extract_kernel(data)
        except BangerError:
            pass


def loaded(data: bytes) -> list[bytes]:
    """What a monitor has in memory after loading."""
    return [
        (data[part.offset : part.offset + part.file_size] + bytes(part.memory_size - part.file_size))
        for part in elf.segments(data)
        if part.kind == 1
    ]


def test_trimming_keeps_memory_and_cuts_zeros() -> None:
    kernel = make_elf(
        [(0x1000, b"code" * 3000, 13_000), (0x10_0000, b"data" + bytes(3_000_000), 3_100_000)],
        behind=b"symbols" * 9000,
    )
    trimmed = elf.trim_kernel(kernel)
    assert loaded(trimmed) == loaded(kernel)
    assert len(trimmed) < len(kernel) - 3_000_000 + 2 * elf.PAGE
    assert b"symbols" not in trimmed
    assert elf.section(trimmed, ".modinfo") is None
    assert elf.trim_kernel(trimmed) == trimmed


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1 << 40), st.binary(max_size=60), st.integers(0, 20_000), st.integers(0, 9000)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_trimming_any_kernel_keeps_its_memory(parts: list[tuple[int, bytes, int, int]]) -> None:
    kernel = make_elf(
        [
            (place, content + bytes(zeros), len(content) + zeros + more)
            for place, content, zeros, more in parts
        ]
    )
    assert loaded(elf.trim_kernel(kernel)) == loaded(kernel)


@given(st.binary(max_size=300))
def test_any_bytes_are_no_kernel(data: bytes) -> None:
    for candidate in (data, b"\x7fELF\x02\x01" + data):
        for read in (elf.trim_kernel, elf.module_info, elf.segments):
            try:
                read(candidate)
            except BangerError:
                pass


def tree(folder: Path, wanted: dict[str, str], *, builtin: str = "", suffix: str = ".ko") -> Path:
    for name, depends in wanted.items():
        path = folder / "kernel" / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = make_module(name.replace("-", "_"), depends)
        path.write_bytes(
            {".ko": lambda d: d, ".ko.xz": lzma.compress, ".ko.zst": zstd.compress}[suffix](data)
        )
    (folder / "modules.builtin").write_text(builtin)
    return folder


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz", ".ko.zst"])
def test_modules_come_after_what_they_need(tmp_path: Path, suffix: str) -> None:
    root = tree(
        tmp_path,
        {
            "virtio-ring": "virtio",
            "virtio": "",
            "virtio_net": "virtio-ring,virtio,failover",
            "failover": "",
            "unused": "",
        },
        builtin="kernel/drivers/button.ko\n",
        suffix=suffix,
    )
    found = modules.load_order(root, ("virtio_net", "button", "virtio"))
    names = [module.name for module in found]
    assert sorted(names) == ["failover", "virtio", "virtio_net", "virtio_ring"]
    assert (
        names.index("virtio")
        < names.index("virtio_ring")
        < names.index("virtio_net")
        > names.index("failover")
    )
    assert all(module.content.startswith(b"\x7fELF") for module in found)


def test_missing_and_circular_modules(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": "b", "b": "a", "c": "gone"})
    with pytest.raises(BangerError, match="need each other"):
        modules.load_order(root, ("a",))
    with pytest.raises(BangerError, match="no module gone, which c needs"):
        modules.load_order(root, ("c",))
