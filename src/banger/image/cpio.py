"""Writing cpio archives in the "newc" format, as the kernel's initramfs unpacker reads them.

The kernel takes several archives behind each other if each begins on a multiple of four bytes
(init/initramfs.c; Documentation/driver-api/early-userspace/buffer-format.rst): `finish` pads to 512,
as cpio(1) does. Pure.
"""

from __future__ import annotations

import stat

from banger.image.errors import invalid

BLOCK = 512
MAX_NAME = 4096
MAX_CONTENT = 0xFFFF_FFFF


class CpioWriter:
    """Collects entries, parents first. All belongs to root, no times: the same input, the same bytes."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._inode = 0
        self._folders: set[str] = set()
        self._names: set[str] = set()

    def add_file(self, name: str, content: bytes, *, mode: int = 0o644) -> None:
        self._parents(name)
        self._entry(name, stat.S_IFREG | (mode & 0o7777), content)

    def add_folder(self, name: str, *, mode: int = 0o755) -> None:
        """A folder that is there already keeps its first mode."""
        name = _clean(name)
        self._parents(name)
        if name not in self._folders:
            self._folders.add(name)
            self._entry(name, stat.S_IFDIR | (mode & 0o7777), b"")

    def finish(self) -> bytes:
        """The archive, its trailer included, padded to a multiple of 512 bytes."""
        self._header("TRAILER!!!", mode=0, size=0, links=1, inode=0)
        self._out += bytes(-len(self._out) % BLOCK)
        return bytes(self._out)

    def _parents(self, name: str) -> None:
        parts = _clean(name).split("/")
        for end in range(1, len(parts)):
            parent = "/".join(parts[:end])
            if parent not in self._folders:
                self._folders.add(parent)
                self._entry(parent, stat.S_IFDIR | 0o755, b"")

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        name = _clean(name)
        if name in self._names:
            raise invalid(f"the initramfs would have {name!r} twice")
        if len(content) > MAX_CONTENT:
            raise invalid(f"{name!r} is too large for an initramfs")
        self._names.add(name)
        self._inode += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        self._header(name, mode=mode, size=len(content), links=links, inode=self._inode)
        self._out += content
        self._pad()

    def _header(self, name: str, *, mode: int, size: int, links: int, inode: int) -> None:
        encoded = name.encode("utf-8", "surrogateescape") + b"\0"
        #         ino    mode  uid gid links  time size maj min rmaj rmin name length  checksum
        fields = (inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(encoded), 0)
        self._out += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._pad()

    def _pad(self) -> None:
        self._out += bytes(-len(self._out) % 4)


def _clean(name: str) -> str:
    parts = name.strip("/").split("/")
    if "\0" in name or len(name) >= MAX_NAME or any(part in ("", ".", "..") for part in parts):
        raise invalid(f"not a path for an initramfs: {name[:200]!r}")
    return "/".join(parts)
