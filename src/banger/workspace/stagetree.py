"""The tar of a guest's folder as a tree of names; contents are only pointed at.

Used by stage.py. The tar is hostile: no name leads out of the tree or through a link, entries and their names
are bounded, and devices, pipes, sockets and what git cannot track are left out with a note. Blocking.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from banger.model.notes import Notes
from banger.system.tarheaders import (
    BLOCK_DEVICE,
    CHAR,
    FIFO,
    FILE,
    FOLDER,
    LINK,
    SYMLINK,
    BadTar,
    Header,
    Pieces,
    read_headers,
)
from banger.workspace.errors import WorkNotKept

MAX_ENTRIES: Final = 1_000_000
MAX_INDEX_BYTES: Final = 256 << 20
"""Of names, link targets and maps of sparse files together."""
MAX_NAME: Final = 255
MAX_PATH: Final = 3500
"""Of a path below the staging folder: git must still be able to open it (PATH_MAX)."""
MAX_DEPTH: Final = 256
MAX_TARGET: Final = 4095
_SPECIAL: Final = {FIFO: "a pipe", CHAR: "a device", BLOCK_DEVICE: "a device"}
_IGNORABLE: Final = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")
_USELESS: Final = re.compile(
    rb"(?:hooks|.+\.lock|objects/info|objects/pack/(?!pack-[0-9a-f]{40,64}\.pack\Z).*"
    rb"|objects/[0-9a-f]{2}/(?![0-9a-f]{38}(?:[0-9a-f]{24})?\Z).*)\Z",
    re.DOTALL,
)
"""Below a git folder: what its copy on the host has no use for (indexes of packs are made anew there)."""
_LOOSE: Final = re.compile(rb"(?:.*/)?objects/[0-9a-f]{2}/[0-9a-f]{38,62}\Z")


@dataclass(slots=True)
class Node:
    """children: of a folder, else None. size, position, pieces: of a file's content. target: a link's."""

    kind: bytes
    executable: bool = False
    size: int = 0
    position: int = 0
    pieces: Pieces | None = None
    target: bytes = b""
    children: dict[bytes, Node] | None = None


def read_tree(descriptor: int, end: int, *, notes: Notes, heard: Callable[[], None] = lambda: None) -> Node:
    """The folder whose tar is the first `end` bytes of a file. WorkNotKept: a broken one, or too much.

    heard: called often; what it raises ends the work.
    """
    tree = _Tree(notes)
    try:
        for number, header in enumerate(read_headers(descriptor, 0, end)):
            if not number % 1000:
                heard()
            tree.add(header)
    except BadTar as error:
        raise WorkNotKept("what came out of the guest is no sound archive", details=str(error)) from error
    return tree.root


class _Tree:
    def __init__(self, notes: Notes) -> None:
        self.root = Node(FOLDER, children={})
        self._notes = notes
        self._entries_left = MAX_ENTRIES
        self._index_left = MAX_INDEX_BYTES

    def add(self, header: Header) -> None:
        self._index_left -= len(header.name) + len(header.target) + 24 * len(header.pieces or ())
        if self._index_left < 0:
            raise WorkNotKept(f"its names are longer together than {MAX_INDEX_BYTES >> 20} MiB")
        parts = [part for part in header.name.split(b"/") if part not in (b"", b".")]
        if not parts:
            if header.kind != FOLDER:
                raise WorkNotKept("it is no folder any more")
            return
        why = _refused(header, parts) or self._put(header, parts)
        if why:
            self._notes.add(f"{why} is left out: {shown(header.name)}")

    def _put(self, header: Header, parts: list[bytes]) -> str:
        """Why not, or ""."""
        parent = self._folder(parts[:-1])
        if parent is None or parent.children is None:
            return "what lies below a file"
        name = parts[-1]
        there = parent.children.get(name)
        if header.kind == FOLDER:
            if there is None:
                self._add(parent, name, Node(FOLDER, children={}))
            return "" if there is None or there.kind == FOLDER else "a name that comes twice"
        if there is not None:
            return "a name that comes twice"
        if header.kind == SYMLINK:
            self._add(parent, name, Node(SYMLINK, target=header.target))
        elif header.kind == LINK:
            first = self._find([part for part in header.target.split(b"/") if part not in (b"", b".")])
            if first is None or first.kind == FOLDER:
                return "a hard link to nothing"
            self._add(parent, name, first)
        else:
            node = Node(FILE, executable=bool(header.mode & 0o100), size=header.size)
            node.position, node.pieces = header.position, header.pieces
            self._add(parent, name, node)
        return ""

    def _folder(self, parts: list[bytes]) -> Node | None:
        """The folder at a path, made where it is missing; None where something else is in the way."""
        here = self.root
        for part in parts:
            if here.children is None:
                return None
            below = here.children.get(part)
            if below is None:
                below = Node(FOLDER, children={})
                self._add(here, part, below)
            here = below
        return here

    def _find(self, parts: list[bytes]) -> Node | None:
        here = self.root
        for part in parts:
            below = here.children.get(part) if here.children is not None else None
            if below is None:
                return None
            here = below
        return here

    def _add(self, parent: Node, name: bytes, node: Node) -> None:
        self._entries_left -= 1
        if self._entries_left < 0:
            raise WorkNotKept(f"it has more than {MAX_ENTRIES} files and folders")
        assert parent.children is not None
        parent.children[name] = node


def _refused(header: Header, parts: list[bytes]) -> str:
    if header.name.startswith(b"/") or b".." in parts:
        return "a name that leads out of it"
    if header.kind in _SPECIAL:
        return _SPECIAL[header.kind]
    if any(len(part) > MAX_NAME for part in parts) or sum(map(len, parts)) + len(parts) > MAX_PATH:
        return "a name that is too long"
    if len(parts) > MAX_DEPTH:
        return "what lies too deep"
    if header.kind == SYMLINK and (not 0 < len(header.target) <= MAX_TARGET or b"\0" in header.target):
        return "a broken symlink"
    return ""


def unwanted_in_git(inside: bytes, node: Node) -> str | None:
    """Why a path below a `.git` is no use on the host ("": nobody needs to know); None: it is of use.

    What is let through is not trusted either: see adoption.py.
    """
    if inside == b"objects/info" and node.children and b"alternates" in node.children:
        return "what git borrows from another repository"
    if _USELESS.match(inside):
        return ""
    if node.kind == SYMLINK:
        return "a symlink in a git folder"
    if node.kind == FILE and not node.size and _LOOSE.match(inside):
        return "an object of git's that never reached the disk"
    return None


def not_for_git(name: bytes, node: Node) -> bool:
    """A name (not `.git` itself) that git tracks nowhere, as some file system takes it for `.git`'s."""
    if name.lower() == b".gitmodules" and node.kind == SYMLINK:
        return True
    if not (name[:1] in (b".", b"g", b"G") or name[:1] > b"\x7f"):
        return False
    plain = _IGNORABLE.sub("", name.decode("utf-8", "replace")).lower()
    return plain == ".git" or plain.partition(":")[0].rstrip(" .") in (".git", "git~1")


def shown(raw: bytes) -> str:
    """A guest's name in a sentence: short, quoted, and nothing a terminal could act upon."""
    text = raw[:200].decode("utf-8", "backslashreplace").removeprefix("./")
    return "'" + "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text) + "'"
