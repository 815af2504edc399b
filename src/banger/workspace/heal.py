"""A repository that its guest's crash tore, brought to the last state of it that is whole.

git flushes neither each object nor a ref's file: of a guest that was killed, a branch may name a commit that
never reached the disk, or nothing at all. Such a ref goes back to the newest entry of its reflog that is
whole, or is dropped, with a note. Used by stage.py on the git folder that adopt made, which is ours; the
reflogs are read where they were staged. The guest's disk stays as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from banger.model.notes import Notes, sentence
from banger.system.threads import in_thread
from banger.workspace.errors import WorkNotKept
from banger.workspace.hostrepository import HostRepository
from banger.workspace.stagetree import shown

MAX_REFS: Final = 2000
"""Loose refs that are looked at one by one, once something is torn."""
MAX_ENTRIES: Final = 100
"""Of a reflog, from its newest."""
MAX_LOG_BYTES: Final = 1 << 20
_MAX_REF: Final = 4 << 10
_ID: Final = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_LOG: Final = re.compile(rb"([0-9a-f]{40}(?:[0-9a-f]{24})?) ([0-9a-f]{40}(?:[0-9a-f]{24})?) ")
_ZEROS: Final = re.compile(rb"0+\Z")
_HEAD: Final = b"HEAD"
_STATES: Final = re.compile(rb"[A-Z_]{1,40}_HEAD\Z")


async def heal(repository: HostRepository, tree: str) -> tuple[str, ...]:
    """tree: the staged work tree. Returns a sentence for each ref that was changed.

    Nothing is changed where no ref at all is whole: that is no crash's doing (objects that were never there,
    a damage that git does not get over), and whoever keeps the work must hear of it from git.
    """
    try:
        found = await repository.git("rev-parse", "--absolute-git-dir")
        if found.status:
            return ()
        git_dir = Path(os.fsdecode(found.stdout.rstrip(b"\n")))
        refs = await in_thread(partial(_read, git_dir))
        if all(_ID.match(value) for value in refs.loose.values()) and await _whole(
            repository, {*refs.loose.values(), *refs.packed.values()}
        ):
            return ()
        return await _Healing(repository, git_dir, Path(tree, ".git")).run(refs)
    except WorkNotKept as error:  # a history that takes git too long
        return (sentence(f"whether a crash tore its history was not found out: {error.reason}"),)


@dataclass(frozen=True, slots=True)
class _Refs:
    """Of what has no commit but another ref, nothing. loose: HEAD too, where it is detached; b"" is torn."""

    loose: Mapping[bytes, bytes]
    packed: Mapping[bytes, bytes]


class _Healing:
    def __init__(self, repository: HostRepository, git_dir: Path, staged: Path) -> None:
        self._repository = repository
        self._git_dir = git_dir
        self._staged = staged
        self._notes = Notes()
        self._good: set[bytes] = set()

    async def run(self, refs: _Refs) -> tuple[str, ...]:
        if await _whole(self._repository, set(refs.packed.values())):
            self._good.update(refs.packed.values())
        torn: list[bytes] = []
        for number, (name, value) in enumerate(refs.loose.items()):
            if number == MAX_REFS:
                self._notes.add(f"more than {MAX_REFS} refs: the others were not looked at")
                break
            if not _ID.match(value) or not await self._is_good(value):
                torn.append(name)
        mended = {name: await self._last_whole(name) for name in torn}
        if self._good:
            for name, found in mended.items():
                await in_thread(partial(self._set, name, found))
        return self._notes.lines()

    async def _last_whole(self, name: bytes) -> bytes:
        """b"" where there is none."""
        for value in await in_thread(partial(self._logged, name)):
            if await self._is_good(value):
                return value
        return b""

    def _set(self, name: bytes, value: bytes) -> None:
        place = self._git_dir / os.fsdecode(name)
        what = "the commit that was checked out" if name == _HEAD else f"what {shown(name)} was last"
        if value:
            place.write_bytes(value + b"\n")
            self._notes.add(f"{what} never reached the disk: it is kept as it was at {value[:12].decode()}")
            return
        if name != _HEAD:  # without it, there is no repository
            place.unlink(missing_ok=True)
        self._notes.add(f"{what} never reached the disk, and no state of it before that is known")

    async def _is_good(self, value: bytes) -> bool:
        if value not in self._good:
            if not await _whole(self._repository, {value}, known=self._good):
                return False
            self._good.add(value)
        return True

    def _logged(self, name: bytes) -> list[bytes]:
        """Where a ref was, newest first, each once."""
        places = [self._staged / "logs" / os.fsdecode(name)]
        if _current(self._git_dir) == name:
            places.append(self._staged / "logs/HEAD")
        found: dict[bytes, None] = {}
        for place in places:
            for line in reversed(_tail(place).split(b"\n")):
                match = _LOG.match(line)
                if match and len(found) < MAX_ENTRIES:
                    found.update(dict.fromkeys(id_ for id_ in (match[2], match[1]) if not _ZEROS.match(id_)))
        return list(found)


async def _whole(
    repository: HostRepository, values: Collection[bytes], known: Collection[bytes] = ()
) -> bool:
    """Whether everything that these reach is there; known: what is, with all that it reaches."""
    if not values:
        return True
    lines = b"\n".join((*sorted(values), *(b"^" + value for value in sorted(known)), b""))
    done = await repository.git("rev-list", "--objects", "--quiet", "--stdin", stdin=lines)
    return done.status == 0


def _read(git_dir: Path) -> _Refs:
    loose: dict[bytes, bytes] = {}
    for path in [git_dir / "HEAD", *git_dir.iterdir(), *(git_dir / "refs").rglob("*")]:
        name = os.fsencode(path.relative_to(git_dir))
        if not (name == _HEAD or name.startswith(b"refs/") or _STATES.match(name)) or not path.is_file():
            continue
        value = _first_line(path)
        if not value.startswith(b"ref: "):
            loose[name] = value if _ID.match(value) else b""
    packed: dict[bytes, bytes] = {}
    try:
        lines = (git_dir / "packed-refs").read_bytes().split(b"\n")
    except FileNotFoundError:
        lines = []
    for line in lines:
        value, _, name = line.partition(b" ")
        if name and _ID.match(value):
            packed[name] = value
    return _Refs(loose, packed)


def _current(git_dir: Path) -> bytes:
    return _first_line(git_dir / "HEAD").removeprefix(b"ref: ")


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_REF).partition(b"\n")[0].rstrip()


def _tail(path: Path) -> bytes:
    """No part of it a symlink: none were staged below a `.git`, which itself may be a file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_LOG_BYTES))
            return file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return b""
