"""The tree that layers make, in memory: entries without their contents, replayed oldest first.

A name leads to an inode, hard links are several names of one, and so every rule of layers is what a file
system would do: a link outlives its target's name, a replaced file leaves its other names alone. A whiteout
removes what older layers brought, never what its own layer brings, in whichever order (OCI's rule, and
umoci's). Folders above an entry are looked up inside the tree, through the image's own symlinks as
containerd does (/lib → usr/lib with a later lib/x), bounded, and never above the root; the entry's own name
is never followed. Pure; no path here is used on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from banger.system.tarheaders import (
    BLOCK_DEVICE,
    CHAR,
    FILE,
    FOLDER,
    LINK,
    SYMLINK,
    BadTar,
    Header,
    Pieces,
)

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
META = b".wh..wh."
"""What begins with it, but for OPAQUE, is aufs's own housekeeping."""
MAX_NAME, MAX_PATH = 255, 4095
MAX_HOPS = 40
MAX_LINKS = 65_000
MAX_XATTRS = 3900
"""Bytes of an entry's extended attributes: what ext4 has room for, its one block."""
_NAMESPACES = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")
_OVERLAYS_OWN = b"trusted.overlay."


@dataclass(slots=True, eq=False)
class Inode:
    """source: the descriptor in which the content lies, at `position` or in `pieces`. names: how many.

    mtime: seconds, as ext4 can have them. layer: who brought it, counted from 0.
    """

    kind: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    layer: int = 0
    names: int = 1
    size: int = 0
    source: int = -1
    position: int = 0
    pieces: Pieces | None = None
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] | None = None


@dataclass(slots=True, eq=False)
class Folder(Inode):
    """fresh: the names that layer number `fresh_of` has brought; purged: the layer that emptied it last."""

    children: dict[bytes, Inode] = field(default_factory=dict)
    fresh: set[bytes] | None = None
    fresh_of: int = -1
    purged: int = -1


class TooLarge(Exception):
    """A limit of the tree's is passed; the text says which."""


def new_folder(layer: int, mode: int = 0o755) -> Folder:
    return Folder(kind=FOLDER, mode=mode, layer=layer, names=1, purged=layer)


class LayerTree:
    """apply() each layer's entries in order, next_layer() between layers.

    max_nodes: entries, and the folders made for them, that were ever laid in; max_index: bytes of names,
    targets and attributes together; max_steps: of walks through symlinks, which cost more than the bytes
    that ask for them.
    """

    def __init__(self, *, max_nodes: int, max_index: int, max_steps: int) -> None:
        self.root = new_folder(0)
        self.layer = 0
        self._nodes_left = max_nodes
        self._index_left = max_index
        self._steps_left = max_steps

    def next_layer(self) -> None:
        self.layer += 1

    def apply(self, header: Header, source: int) -> None:
        """An entry of the current layer; source: the descriptor of its content. BadTar, TooLarge."""
        parts = split(header.name)
        self._index_left -= len(header.name) + len(header.target)
        self._index_left -= sum(len(name) + len(value) for name, value in header.xattrs.items())
        self._index_left -= 24 * len(header.pieces or ())
        if self._index_left < 0:
            raise TooLarge(
                "names, link targets and attributes that are longer together than an image's can be"
            )
        if not parts:
            if header.kind != FOLDER:
                raise BadTar("the root is no folder")
            _describe(self.root, header, self.layer)
        elif parts[-1].startswith(WHITEOUT):
            self._whiteout(parts)
        elif header.kind == LINK:
            self._link(parts, header)
        else:
            self._put(parts, _inode(header, source, self.layer))

    def find(self, parts: list[bytes]) -> Inode | None:
        """What is at a path, the last name not followed."""
        if not parts:
            return self.root
        parent = self._walk(parts[:-1], create=False)
        return parent.children.get(parts[-1]) if parent is not None else None

    def folder(self, path: bytes) -> Folder | None:
        """The folder that a path leads to, symlinks followed; None where it leads to none."""
        try:
            return self._walk(split(path), create=False)
        except BadTar:
            return None

    def put(self, path: bytes, inode: Inode) -> None:
        """Lay an inode at a path, in place of what is there (a folder over a folder keeps the content)."""
        self._put(split(path), inode)

    def _put(self, parts: list[bytes], inode: Inode) -> None:
        parent = self._walk(parts[:-1], create=True)
        assert parent is not None
        name = parts[-1]
        there = parent.children.get(name)
        if isinstance(there, Folder) and isinstance(inode, Folder):
            there.mode, there.uid, there.gid, there.mtime = inode.mode, inode.uid, inode.gid, inode.mtime
            there.xattrs, there.layer = inode.xattrs, inode.layer
        else:
            if there is not None:
                _unname(there)
                # to the end of the order, so that contents are written in the order in which they lie
                del parent.children[name]
            self._add(parent, name, inode)
        self._mark(parent, name)

    def _link(self, parts: list[bytes], header: Header) -> None:
        wanted = self.find(split(header.target, what="a hard link to "))
        if wanted is None:
            raise BadTar(f"a hard link to {shown(header.target)}, which is not there")
        if isinstance(wanted, Folder):
            raise BadTar(f"a hard link to {shown(header.target)}, which is a folder")
        if wanted.names >= MAX_LINKS:
            raise BadTar(f"more than {MAX_LINKS} hard links to {shown(header.target)}")
        # before the old holder of the name goes: that may be the same file under the same name
        wanted.names += 1
        self._put(parts, wanted)

    def _whiteout(self, parts: list[bytes]) -> None:
        name = parts[-1]
        hidden = name[len(WHITEOUT) :]
        if name.startswith(META) and name != OPAQUE:
            return
        if hidden in (b"", b".", b".."):
            raise BadTar("a whiteout of nothing")
        parent = self._walk(parts[:-1], create=False)
        if parent is None:
            return
        if name == OPAQUE:
            self._purge(parent)
            return
        there = parent.children.get(hidden)
        if isinstance(there, Folder):
            self._purge(there)
        if there is not None:
            self._forget(parent, hidden)

    def _purge(self, top: Folder) -> None:
        """Remove what older layers have below a folder. Each folder is emptied once a layer: linear."""
        if top.purged == self.layer:
            return
        stack = [(b"", top, iter(list(top.children)))]
        while stack:
            own, folder, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                folder.purged = self.layer
                if stack:
                    self._forget(stack[-1][1], own)
                continue
            child = folder.children[name]
            if isinstance(child, Folder) and child.purged != self.layer:
                stack.append((name, child, iter(list(child.children))))
            else:
                self._forget(folder, name)

    def _forget(self, parent: Folder, name: bytes) -> None:
        """Remove an older layer's entry; a folder stays while it has something of this layer's."""
        child = parent.children[name]
        if not self._is_fresh(parent, name) and not (isinstance(child, Folder) and child.children):
            child.names -= 1
            del parent.children[name]

    def _walk(self, parts: list[bytes], *, create: bool) -> Folder | None:
        here = [self.root]
        todo = parts[::-1]
        hops = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                if len(here) > 1:
                    here.pop()
                continue
            parent = here[-1]
            child = parent.children.get(name)
            if child is None:
                if not create:
                    return None
                child = new_folder(self.layer)
                self._add(parent, name, child)
            if isinstance(child, Folder):
                here.append(child)
            elif child.kind == SYMLINK:
                hops += 1
                if hops > MAX_HOPS:
                    raise BadTar("a path through a loop of symlinks")
                if child.target.startswith(b"/"):
                    del here[1:]
                onward = [part for part in child.target.split(b"/") if part not in (b"", b".")]
                self._step(len(onward) + 1)
                todo += reversed(onward)
            elif create:
                raise BadTar(f"an entry below {shown(name)}, which is no folder")
            else:
                return None
        return here[-1]

    def _step(self, count: int) -> None:
        self._steps_left -= count
        if self._steps_left < 0:
            raise TooLarge("more symlinks on the way to its entries than an image can have")

    def _add(self, parent: Folder, name: bytes, inode: Inode) -> None:
        self._nodes_left -= 1
        if self._nodes_left < 0:
            raise TooLarge("more entries, with the folders that they need, than an image can have")
        parent.children[name] = inode
        self._mark(parent, name)

    def _mark(self, folder: Folder, name: bytes) -> None:
        if folder.fresh_of != self.layer or folder.fresh is None:
            folder.fresh, folder.fresh_of = set(), self.layer
        folder.fresh.add(name)

    def _is_fresh(self, folder: Folder, name: bytes) -> bool:
        return folder.fresh_of == self.layer and folder.fresh is not None and name in folder.fresh


def split(path: bytes, *, what: str = "") -> list[bytes]:
    """A clean path's names; a leading "/" means the image's root, as everywhere. BadTar for what escapes or
    what no file system has."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise BadTar(f'{what}a path with ".."')
    if len(path) > MAX_PATH:
        raise BadTar(f"{what}a path of {len(path)} bytes")
    if any(len(part) > MAX_NAME for part in parts):
        raise BadTar(f"{what}a name of more than {MAX_NAME} bytes")
    return parts


def shown(raw: bytes) -> str:
    """A stranger's name in an error: short, quoted, and nothing a terminal could act upon."""
    text = raw[:200].decode("utf-8", "backslashreplace")
    return "'" + "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text) + "'"


def _unname(top: Inode) -> None:
    """A name goes, and with a folder's all below it."""
    going = [top]
    while going:
        inode = going.pop()
        inode.names -= 1
        if isinstance(inode, Folder):
            going += inode.children.values()


def _inode(header: Header, source: int, layer: int) -> Inode:
    inode: Inode = new_folder(layer) if header.kind == FOLDER else Inode(kind=header.kind, mode=0)
    _describe(inode, header, layer)
    if header.kind == FILE:
        inode.size, inode.source = header.size, source
        inode.position, inode.pieces = header.position, header.pieces
    elif header.kind == SYMLINK:
        if not header.target or len(header.target) > MAX_PATH:
            raise BadTar(f"a symlink to a path of {len(header.target)} bytes")
        inode.target, inode.mode = header.target, 0o777
    elif header.kind in (CHAR, BLOCK_DEVICE):
        major, minor = header.device
        if major > 0xFFF or minor > 0xFFFFF:
            raise BadTar(f"a device {major}:{minor}, which Linux cannot have")
        inode.device = header.device
    return inode


def _describe(inode: Inode, header: Header, layer: int) -> None:
    if max(header.uid, header.gid) > 0xFFFF_FFFE:
        raise BadTar(f"an owner {header.uid}:{header.gid}, which Linux cannot have")
    inode.mode, inode.uid, inode.gid, inode.layer = header.mode, header.uid, header.gid, layer
    # 34 bits from 1901 on: the kernel, too, takes what is beyond for the last moment
    inode.mtime = min(max(header.mtime, -(1 << 31)), (1 << 34) - (1 << 31) - 1)
    inode.xattrs = _kept(header.xattrs) if header.xattrs else None


def _kept(xattrs: dict[bytes, bytes]) -> dict[bytes, bytes] | None:
    """Without those that Linux has no place for (other systems' own), and overlayfs's, with which an image
    could not mean anything but a mount of its layers."""
    kept = {
        name: value
        for name, value in xattrs.items()
        if name.startswith(_NAMESPACES) and not name.startswith(_OVERLAYS_OWN)
    }
    if any(len(name) > MAX_NAME for name in kept):
        raise BadTar(f"an extended attribute with a name of more than {MAX_NAME} bytes")
    if sum(len(name) + len(value) + 20 for name, value in kept.items()) > MAX_XATTRS:
        raise BadTar("more extended attributes than a file system takes")
    return kept or None


def walk(top: Folder) -> Iterator[tuple[bytes, Inode]]:
    """Everything below a folder, each folder before what is in it; paths from there. BadTar (with the path)
    for a path that has become too long through symlinks, or a folder with more than ext4's 65,000 folders."""
    stack: list[tuple[bytes, Iterator[tuple[bytes, Inode]]]] = [(b"", iter(top.children.items()))]
    while stack:
        prefix, items = stack[-1]
        for name, inode in items:
            path = prefix + name
            if len(path) > MAX_PATH:
                raise BadTar(f"a path of {len(path)} bytes", path, layer=inode.layer)
            yield path, inode
            if isinstance(inode, Folder):
                if sum(isinstance(child, Folder) for child in inode.children.values()) > MAX_LINKS - 2:
                    raise BadTar(f"more than {MAX_LINKS - 2} folders in a folder", path, layer=inode.layer)
                stack.append((path + b"/", iter(inode.children.items())))
                break
        else:
            stack.pop()
