"""A repository's way into a guest: made ready in a temporary folder, then written as one tar.

The CLI opens it (before the VM is there, or while it boots) and gives `write_tar` to the copy into the
guest's /root, where the tar's one folder appears whole or not at all. The temporary folder is the user's,
disk space for about one compressed copy of what travels; it goes with the `with`, also on an error or Ctrl-C.
After a kill -9 it stays until the next travel, which removes what nobody holds any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from banger.errors import BangerError, ErrorCode
from banger.local.account import Account
from banger.local.asuser import acting_as
from banger.local.gitconfig import modules_folder
from banger.local.gitfiles import changed
from banger.local.gitplan import Plan, plan
from banger.local.gitscratch import Built, build
from banger.local.gitsource import METADATA, Source
from banger.local.gittar import TarWriter, Write
from banger.workspace.names import sub_prefix

TOP = "repo"
GUEST_PATH = "/root/repo"
_PREFIX = "banger-travel-"


@dataclass(frozen=True, slots=True)
class _Part:
    """One repository of those that travel. prefix: "" or `path/`; git_at: below the top.

    named: what its names begin with in the record, `sub/<path>/sub/<path below>/`.
    """

    source: Source
    built: Built
    prefix: bytes
    git_at: bytes
    named: str
    empty: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Travel:
    """plan: what goes. workspace: the record's fields. refs: names of the record's to ids, as brought."""

    plan: Plan
    workspace: dict[str, Any]
    refs: dict[str, str]
    _source: Source = field(repr=False)
    _parts: tuple[_Part, ...] = field(repr=False)

    def write_tar(self, write: Write) -> None:
        """Give the whole stream to `write`, in pieces of at most 256 KiB. BUSY when a file changed meanwhile.

        Reads with the user's rights: under sudo `write` is called with them, too.
        """
        source = self._source
        with acting_as(source.account):
            tar = TarWriter(write, TOP.encode(), readonly=source.readonly)
            for part in self._parts:
                self._write_part(tar, part)
            tar.close()

    def _write_part(self, tar: TarWriter, part: _Part) -> None:
        built = part.built
        now = os.stat(built.git_dir).st_mtime_ns
        if part.prefix:
            self._write_way(tar, part.prefix.rstrip(b"/"))
            link = os.path.relpath(part.git_at, part.prefix.rstrip(b"/"))
            tar.work_tree(part.prefix, built.tree, built.listing.files)
            tar.text(part.prefix + b".git", b"gitdir: " + link + b"\n", now)
        else:
            status = os.stat(part.source.root)
            tar.folder(b"", status.st_mode, status.st_mtime_ns)
            tar.git_folder(part.git_at, built.git_dir)
            for other in self._parts[1:]:
                tar.git_folder(other.git_at, other.built.git_dir)
            tar.work_tree(b"", built.tree, built.listing.files)
        for path in part.empty:
            self._write_way(tar, part.prefix + path)
            tar.folder(part.prefix + path, 0o755, now)

    def _write_way(self, tar: TarWriter, path: bytes) -> None:
        """The folders above, again: what is put into them must not show in their times."""
        root = os.fsencode(self._source.root)
        names = path.split(b"/")
        for depth in range(1, len(names)):
            above = b"/".join(names[:depth])
            try:
                status = os.lstat(os.path.join(root, above))
            except OSError as error:
                raise changed(above) from error
            tar.folder(above, status.st_mode, status.st_mtime_ns)


def aside_name(kept: Mapping[str, object] | None) -> str:
    """How the folder that is at /root/repo is called once another takes its place; "" when it goes.

    kept: its Work, kept just now; None when the folder is none of banger's, so that nobody knows its work.
    """
    if kept is not None and not kept.get("files_only"):
        return ""
    return f"{TOP}.before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


@contextlib.contextmanager
def open_travel(source: Source, *, tell: Callable[[str], None] | None = None) -> Iterator[Travel]:
    """Make everything ready. tell: hears what is done, a line each. Raises what stands in the way."""
    if tell is not None:
        tell(f"reading {source.name}")
    with scratch_folder(source.account) as folder:
        try:
            parts = tuple(_make(source, folder, prefix=b"", git_at=b".git", named=""))
        except OSError as error:
            raise _failed(error) from error
        yield _travel(source, parts)


@contextlib.contextmanager
def scratch_folder(account: Account) -> Iterator[str]:
    """A folder of the user's, removed at the end."""
    try:
        with acting_as(account):
            above = _place(account)
            _sweep(above)
            folder = tempfile.mkdtemp(prefix=_PREFIX, dir=above)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _failed(error) from error
    try:
        yield folder
    finally:
        os.close(lock)
        with acting_as(account):
            shutil.rmtree(folder, ignore_errors=True)


def _place(account: Account) -> str:
    """On a disk where possible: what travels may be large, and /tmp is often memory."""
    for folder in (account.env.get("TMPDIR", ""), "/var/tmp"):
        if folder.startswith("/") and os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            return folder
    return tempfile.gettempdir()


def _sweep(above: str) -> None:
    """What an earlier travel of this user's left behind when it was killed."""
    with os.scandir(above) as listing:
        left = [entry.path for entry in listing if entry.name.startswith(_PREFIX)]
    for path in left:
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)


def _make(source: Source, folder: str, *, prefix: bytes, git_at: bytes, named: str) -> Iterator[_Part]:
    gitlinks = {sub.path: sub.source.head_commit for sub in source.submodules if sub.source}
    worktree = os.fsdecode(os.path.relpath(prefix.rstrip(b"/"), git_at)) if prefix else ""
    built = build(source, folder, gitlinks, worktree=worktree)
    empty = tuple(sub.path for sub in source.submodules if not sub.source and _is_folder(source, sub.path))
    yield _Part(source, built, prefix, git_at, named, empty)
    for number, sub in enumerate(source.submodules):
        if sub.source is None:
            continue
        below = os.path.join(folder, str(number))
        with acting_as(source.account):
            os.mkdir(below, 0o700)
        at = os.path.join(git_at, os.fsencode(modules_folder(sub.name)))
        under = named + sub_prefix(sub.path)
        yield from _make(sub.source, below, prefix=prefix + sub.path + b"/", git_at=at, named=under)


def _is_folder(source: Source, path: bytes) -> bool:
    with acting_as(source.account):
        return os.path.isdir(os.path.join(os.fsencode(source.root), path))


def _travel(source: Source, parts: tuple[_Part, ...]) -> Travel:
    files: list[str] = []
    left: list[str] = []
    notes: list[str] = []
    refs: dict[str, str] = {}
    submodules: list[str] = []
    for part in parts:
        prefix = os.fsdecode(part.prefix)
        files += [prefix + os.fsdecode(file.path) for file in part.built.listing.files]
        left += [prefix + name for name in part.built.listing.left]
        notes += part.built.notes
        submodules += [prefix + os.fsdecode(s.path) for s in part.source.submodules if s.source is None]
        refs |= {part.named + name: commit for name, commit in part.built.refs.items()}
    size = sum(file.size for part in parts for file in part.built.listing.files)
    modified: tuple[str, ...] = ()
    if source.mode == METADATA or not source.local_files:
        planned = plan(source)  # the work tree has no part in it, so what is in it stays home
        left, modified = list(planned.untracked_left), planned.modified_left
    whole = Plan(tuple(sorted(files)), size, tuple(left), modified, tuple(submodules), tuple(notes))
    return Travel(whole, _workspace(source, parts[0].built.brought_commit), refs, source, parts)


def _workspace(source: Source, brought: str) -> dict[str, Any]:
    return {
        "source_path": source.path,
        "repo_root": source.root,
        "repo_name": source.name,
        "guest_path": GUEST_PATH,
        "mode": source.mode,
        "readonly": source.readonly,
        "head_commit": source.head_commit,
        "current_branch": source.current_branch,
        "branch_name": source.branch_name,
        "base_commit": source.base_commit,
        "brought_commit": brought,
        "include_untracked": source.include_untracked,
    }


def _failed(error: OSError) -> BangerError:
    code = ErrorCode.NO_SPACE if error.errno in (28, 122) else ErrorCode.PERMISSION_DENIED
    return BangerError(
        code,
        f"cannot make the repository ready: {error.strerror}: {error.filename}",
        hint="TMPDIR names the folder for temporary files" if code is ErrorCode.NO_SPACE else None,
    )
