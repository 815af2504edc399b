"""A work disk with something of its user's besides the image's seed: synced files, and who they are to git.

The seed's tree is read, not its contents; what the user brings is laid into it, never through a symlink of
the image's, and all of it goes to mke2fs by a pipe. The seed stays as it is. Made once for a VM, by rename;
a crash leaves what seeds.py leaves. Called by the work disk of the vm room.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from banger.config.settings import FileSync
from banger.errors import BangerError, ErrorCode
from banger.image.errors import from_os_error, invalid
from banger.image.hostfiles import HostFiles, HostHome
from banger.image.layertree import Folder, Inode, shown
from banger.image.seeds import LABEL, folder_above, home_of_seed, place, read_stamp, renamed
from banger.image.treetar import Measure, measure, write_tree
from banger.system import ext4
from banger.system.ext4 import E2fsprogs
from banger.system.tarheaders import BadTar
from banger.system.threads import in_thread

GIT_CONFIG = b".gitconfig"
_SSH, _KEYS = b".ssh", b".ssh/authorized_keys"
_OWN = "is banger's own there"


@dataclass(frozen=True, slots=True)
class UsersPart:
    """host: whose files `sync` means. git_name, git_email: "" where they are not known."""

    host: HostHome
    sync: Sequence[FileSync] = ()
    git_name: str = ""
    git_email: str = ""

    def is_empty(self) -> bool:
        return not (self.sync or self.git_name or self.git_email)


async def make_users_disk(
    path: str | Path, *, size_bytes: int, seed: Path, part: UsersPart, programs: E2fsprogs
) -> tuple[str, ...]:
    """As seeds.make_work_disk, with the user's part in it; a sentence for each thing that was left out.

    NO_SPACE, with the entry, for what does not fit.
    """
    target = Path(path)
    stop = threading.Event()
    try:
        stamp = read_stamp(seed)
        if stamp is None:
            raise invalid(f"{seed} is no work seed")
        descriptor = os.open(seed, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with tempfile.TemporaryFile(dir=target.parent, buffering=0) as spool:
                files = HostFiles(
                    part.host, spool.fileno(), limit_bytes=size_bytes - stamp.content_bytes, stop=stop
                )
                laid = await in_thread(lambda: _lay(descriptor, seed, part=part, files=files), stop=stop.set)
                await _make(target, laid, size_bytes=size_bytes, programs=programs)
        finally:
            os.close(descriptor)
    except BadTar as error:
        raise invalid(f"the work seed {seed} is broken", details=str(error)) from error
    except OSError as error:
        raise from_os_error(error, f"making {target}") from error
    return tuple(files.warnings)


@dataclass(frozen=True, slots=True)
class _Laid:
    home: Folder
    need: Measure
    largest: str


def _lay(descriptor: int, seed: Path, *, part: UsersPart, files: HostFiles) -> _Laid:
    home = home_of_seed(descriptor, seed)
    sizes: dict[str, int] = {}
    for number, entry in enumerate(part.sync, 1):
        inode = files.read(number, entry)
        if inode is None:
            continue
        path = os.fsencode(entry.guest.removeprefix("~/"))
        *parents, name = path.split(b"/")
        if path.startswith(_KEYS + b"/"):
            files.warn(entry.guest, _OWN)
            continue
        sizes[f"entry {number}, {shown(os.fsencode(entry.host))},"] = _size(inode)
        _merge(folder_above(home, parents), name, inode, path=path, files=files)
    if (part.git_name or part.git_email) and not _has_git_config(home):
        place(home, GIT_CONFIG, files.keep(git_config(part.git_name, part.git_email), 0o644))
    largest = max(sizes, key=lambda key: sizes[key], default="")
    try:
        return _Laid(home, measure(home), largest)
    except BadTar as error:  # the seed alone was measured when it was made
        raise BangerError(
            ErrorCode.INVALID_CONFIG,
            f"file_sync brings what no ext4 can hold: {error}",
            hint="name a smaller folder in config.toml",
        ) from error


def _merge(folder: Folder, name: bytes, inode: Inode, *, path: bytes, files: HostFiles) -> None:
    """A folder comes into one that is there; everything else takes the place of what is there."""
    if path == _KEYS or (path == _SSH and not isinstance(inode, Folder)):
        files.warn(f"~/{os.fsdecode(path)}", _OWN)
        return
    there = folder.children.get(name)
    if isinstance(there, Folder) and isinstance(inode, Folder):
        for child, below in inode.children.items():
            _merge(there, child, below, path=path + b"/" + child, files=files)
    else:
        place(folder, name, inode)


def _size(inode: Inode) -> int:
    if isinstance(inode, Folder):
        return sum(map(_size, inode.children.values()))
    return inode.size


def _has_git_config(home: Folder) -> bool:
    """Either of the two places of git's; one that is behind a symlink of the image's counts."""
    if GIT_CONFIG in home.children:
        return True
    here: Inode = home
    for name in (b".config", b"git", b"config"):
        if not isinstance(here, Folder):
            return True
        if name not in here.children:
            return False
        here = here.children[name]
    return True


def git_config(name: str, email: str) -> bytes:
    """A .gitconfig that says these two; whatever is in them stays inside its quotes."""
    lines = ["[user]\n"]
    for key, value in (("name", name), ("email", email)):
        if value:
            quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
            lines.append(f'\t{key} = "{quoted}"\n')
    return "".join(lines).encode("utf-8", "surrogateescape")


async def _make(target: Path, laid: _Laid, *, size_bytes: int, programs: E2fsprogs) -> None:
    async with renamed(target) as temporary:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        writing = asyncio.ensure_future(asyncio.to_thread(_write, laid.home, write_end))
        try:
            await ext4.make(
                temporary,
                size_bytes=size_bytes,
                programs=programs,
                tar=read_end,
                label=LABEL,
                inodes=laid.need.inodes * 3 // 2,
            )
        except BangerError as error:
            if error.code is ErrorCode.NO_SPACE and laid.largest:
                raise _too_small(error, laid.largest) from error
            raise
        finally:
            # the last reader: a thread that still writes gets EPIPE, and ends
            os.close(read_end)
            await asyncio.wait({writing})
            problem = None if writing.cancelled() else writing.exception()
        if problem is not None:
            raise problem


def _too_small(error: BangerError, largest: str) -> BangerError:
    """mke2fs knows no names."""
    return BangerError(
        ErrorCode.NO_SPACE,
        "the work disk is too small for what file_sync brings, or the host's disk is full;"
        f" {largest} needs most",
        details=f"{error.brief}\n{error.details or ''}",
        hint="make the VM with a larger --disk-size, or sync less",
    )


def _write(home: Folder, write_end: int) -> None:
    with os.fdopen(write_end, "wb", buffering=0) as out:
        write_tree(home, out)
