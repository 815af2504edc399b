"""The user's own files for a new work disk: what `[[file_sync]]` names, read from the host without trust.

Every name is opened in the folder above it and never through a symlink, so that nothing exchanged meanwhile
leads elsewhere; only regular files are opened for reading, for as many bytes as they have. Contents go into
a spool, an unlinked file: no descriptor stays open, and a crash leaves nothing. What cannot be had is a
warning, what cannot fit is NO_SPACE. Used by workhome.py. Blocking.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from banger.config.settings import FileSync
from banger.errors import BangerError, ErrorCode
from banger.image.errors import from_os_error
from banger.image.layertree import MAX_PATH, Folder, Inode, new_folder, shown
from banger.system.tarheaders import FILE

MAX_ENTRIES = 100_000
MAX_DEPTH = 64
"""Folders in folders: each keeps descriptors open while it is read."""
MAX_WARNINGS = 5
"""For one entry of the configuration; the rest are counted."""
FILE_MODE, FOLDER_MODE = 0o600, 0o755
_BLOCK, _INODE = 4096, 256
_CHUNK = 1 << 20
_AT = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symlink",
}


@dataclass(frozen=True, slots=True)
class HostHome:
    """Whose files they are. path: their home, "" where it is not known.

    uid None: whatever this process may read. Else it reads with root's rights for somebody: only what lies
    in the home and, but for root's own, belongs to them.
    """

    path: str
    uid: int | None = None


class Stopped(Exception):
    """The caller is gone."""


class _Skip(Exception):
    """Why something is left out, in words that follow its name."""


def host_home(
    owner_uid: int | None, environ: Mapping[str, str] | None = None, *, euid: int | None = None
) -> HostHome:
    """Of a daemon that is a user's: that user's. Of root's: of whoever made the VM (None: root)."""
    environ = os.environ if environ is None else environ
    euid = os.geteuid() if euid is None else euid
    own = environ.get("HOME", "")
    own = own.rstrip("/") or "/" if own.startswith("/") else ""
    if euid:
        return HostHome(own or _home_of(euid))
    if not owner_uid:
        return HostHome(own or _home_of(0), uid=0)
    return HostHome(_home_of(owner_uid), uid=owner_uid)


def _home_of(uid: int) -> str:
    try:
        found = pwd.getpwuid(uid).pw_dir
    except (KeyError, OverflowError):
        return ""
    return found.rstrip("/") or "/" if found.startswith("/") else ""


class HostFiles:
    """Entries one after the other: read() each. warnings: what was left out, a sentence each.

    spool: the descriptor of an empty file. limit_bytes: what all of it may need on an ext4.
    """

    def __init__(self, home: HostHome, spool: int, *, limit_bytes: int, stop: threading.Event) -> None:
        self.warnings: list[str] = []
        self._home = home
        self._spool = spool
        self._end = 0
        self._bytes_left = limit_bytes
        self._entries_left = MAX_ENTRIES
        self._stop = stop
        self._what = ""
        self._mode = FILE_MODE
        self._unsaid = 0

    def read(self, number: int, entry: FileSync) -> Inode | None:
        """A file, or a folder with what is in it, all of it root's; None, with a warning, for neither.

        number: of the entry, from 1. NO_SPACE with the entry where it does not fit.
        """
        self._what = f"file_sync entry {number}"
        self._mode = FILE_MODE if entry.mode is None else entry.mode
        self._unsaid = -MAX_WARNINGS
        try:
            descriptor = self._open(entry.host)
            try:
                return self._inode(descriptor, entry.host, 0)
            finally:
                os.close(descriptor)
        except _Skip as skip:
            self.warn(entry.host, str(skip))
        except OSError as error:
            self.warn(entry.host, _said(error))
        finally:
            if self._unsaid > 0:
                self.warnings.append(f"{self._what}: {self._unsaid} more were skipped")
        return None

    def warn(self, path: str, why: str) -> None:
        self._unsaid += 1
        if self._unsaid <= 0:
            self.warnings.append(f"{self._what}: {shown(os.fsencode(path))} {why}: skipped")

    def keep(self, content: bytes, mode: int) -> Inode:
        """A file with this content, as of now."""
        self._keep(content, self._end, "the user's settings")
        inode = Inode(
            kind=FILE,
            mode=mode,
            mtime=int(time.time()),
            size=len(content),
            source=self._spool,
            position=self._end,
        )
        self._end += len(content)
        return inode

    def _open(self, path: str) -> int:
        """An O_PATH descriptor of what a path names, nothing in it a symlink but what leads to the home."""
        home = self._home
        base, below = "/", path
        if path == "~" or path.startswith("~/"):
            base, below = home.path, path[1:]
        elif home.path and (path == home.path or path.startswith(f"{home.path.rstrip('/')}/")):
            base, below = home.path, path[len(home.path) :]
        elif home.uid is not None:
            raise _Skip(f"is not in the home of {_name(home.uid)}")
        if not base:
            raise _Skip("is in a home that is not known")
        parts = [part for part in below.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise _Skip("contains ..")
        here = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for number, part in enumerate(parts):
                above, here = here, os.open(part, _AT, dir_fd=here)
                os.close(above)
                if stat.S_ISLNK(os.fstat(here).st_mode):
                    last = number == len(parts) - 1
                    how = "is a symlink" if last else "is reached through a symlink"
                    raise _Skip(f"{how} (write where it leads to)")
        except BaseException:
            os.close(here)
            raise
        return here

    def _inode(self, descriptor: int, path: str, depth: int) -> Inode | None:
        if self._stop.is_set():
            raise Stopped
        found = os.fstat(descriptor)
        kind = stat.S_IFMT(found.st_mode)
        if kind in _SPECIAL:
            raise _Skip(f"is {_SPECIAL[kind]}")
        if self._home.uid and found.st_uid != self._home.uid:
            raise _Skip(f"does not belong to {_name(self._home.uid)}")
        self._entries_left -= 1
        if self._entries_left < 0:
            raise BangerError(
                ErrorCode.NO_SPACE,
                f"{self._what}: {shown(os.fsencode(path))} is one file too many: {MAX_ENTRIES} are synced",
                hint="name a smaller folder in config.toml",
            )
        if kind == stat.S_IFDIR:
            return self._folder(descriptor, found, path, depth=depth)
        return self._file(descriptor, found, path)

    def _file(self, descriptor: int, found: os.stat_result, path: str) -> Inode:
        self._take(-(-found.st_size // _BLOCK) * _BLOCK, path, found.st_size)
        # the very inode that was looked at; O_NONBLOCK: nor does a lease hold it up
        source = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            size = 0
            while size < found.st_size:
                if self._stop.is_set():
                    raise Stopped
                data = os.pread(source, min(_CHUNK, found.st_size - size), size)
                if not data:
                    break  # it has become shorter
                self._keep(data, self._end + size, path)
                size += len(data)
        finally:
            os.close(source)
        inode = Inode(
            kind=FILE,
            mode=self._mode,
            mtime=_seconds(found),
            size=size,
            source=self._spool,
            position=self._end,
        )
        self._end += size
        return inode

    def _folder(self, descriptor: int, found: os.stat_result, path: str, *, depth: int) -> Folder:
        if depth >= MAX_DEPTH:
            raise _Skip(f"is more than {MAX_DEPTH} folders deep")
        self._take(_BLOCK, path, _BLOCK)
        folder = new_folder(0, FOLDER_MODE)
        folder.mtime = _seconds(found)
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=descriptor)
        try:
            with os.scandir(listing) as entries:
                for entry in entries:
                    child = self._child(listing, entry.name, f"{path}/{entry.name}", depth=depth + 1)
                    if child is not None:
                        folder.children[os.fsencode(entry.name)] = child
        finally:
            os.close(listing)
        return folder

    def _child(self, parent: int, name: str, path: str, *, depth: int) -> Inode | None:
        try:
            if len(os.fsencode(path)) > MAX_PATH:
                raise _Skip("has a path that is too long")
            descriptor = os.open(name, _AT, dir_fd=parent)
            try:
                return self._inode(descriptor, path, depth)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return None  # removed meanwhile
        except _Skip as skip:
            self.warn(path, str(skip))
        except OSError as error:
            self.warn(path, _said(error))
        return None

    def _take(self, count: int, path: str, size: int) -> None:
        self._bytes_left -= count + _INODE
        if self._bytes_left < 0:
            raise BangerError(
                ErrorCode.NO_SPACE,
                f"{self._what}: {shown(os.fsencode(path))} ({-(-size >> 10)} KiB)"
                " does not fit on the work disk with what is there already",
                hint="make the VM with a larger --disk-size, or sync less",
            )

    def _keep(self, data: bytes, position: int, path: str) -> None:
        """A full disk is no reason to leave a file out."""
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(self._spool, view, position)
            except OSError as error:
                raise from_os_error(error, f"copying {shown(os.fsencode(path))}") from error
            view, position = view[written:], position + written


def _seconds(found: os.stat_result) -> int:
    return min(max(found.st_mtime_ns // 10**9, -(1 << 31)), (1 << 34) - (1 << 31) - 1)


def _said(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "is not there"
    return f"cannot be read ({error.strerror or error})"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
