"""Objects on their way into a store: packed where the repository is, checked aside, then moved in whole.

Used by WorkStore alone. What comes is a guest's: bounded, indexed with every object checked (`index-pack
--strict`), nothing missing, before the store has it. A crash leaves `incoming-*` in the store's folder, which
WorkStore.sweep removes, or objects that no ref names yet.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from banger.errors import BangerError, ErrorCode
from banger.system.threads import in_thread
from banger.workspace.errors import GitFailed, WorkNotKept
from banger.workspace.hostrepository import HostRepository
from banger.workspace.repository import LISTING, GitResult, existing, look_up_once
from banger.workspace.snapshot import Part

MOST_PACK = 64 << 30
KEEP_FREE = 256 << 20
"""Bytes of the host's disk that keeping leaves alone."""
INCOMING = "incoming-"
_ANY_KIND = re.compile(r"(?:^|/)(?:tags|notes|other)/")
"""Refs that may name a tag, a tree or a file as well as a commit."""

TOLERATED = (
    "zeroPaddedFilemode", "badFilemode", "badTimezone", "zeroPaddedDate", "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail", "missingNameBeforeEmail", "badEmail", "missingEmail", "missingTaggerEntry",
    "badTagName", "nulInCommit", "multipleAuthors",
)  # fmt: skip
"""What old but honest histories have. Nothing of it is ever a path."""


class Incoming:
    """The objects of one receive, beside those of the store, which they may build on."""

    def __init__(self, folder: str, git_dir: str, *, shallow: set[str]) -> None:
        self.shallow = shallow
        self.new_cuts: set[str] = set()
        self._git_dir = git_dir
        self._folder = f"{folder}/{INCOMING}{secrets.token_hex(8)}"
        self._store = HostRepository(git_dir, git_dir)
        self._count = 0
        self._env = {
            "GIT_OBJECT_DIRECTORY": f"{self._folder}/objects",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": f"{git_dir}/objects",
        }

    async def __aenter__(self) -> Incoming:
        os.makedirs(f"{self._folder}/objects/pack", mode=0o700)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await in_thread(partial(shutil.rmtree, self._folder, ignore_errors=True))

    async def git(self, *argv: str, stdin: bytes | None = None, most: int = LISTING) -> GitResult:
        """git at the store, with what came so far."""
        return await self._store.git(*self._shallow_words(), *argv, stdin=stdin, env=self._env, most=most)

    async def look_up(self, names: Sequence[bytes]) -> list[bytes]:
        return await look_up_once(self, names)

    def _shallow_words(self) -> tuple[str, str]:
        path = f"{self._folder}/shallow"
        with open(path, "w") as file:
            file.writelines(f"{commit}\n" for commit in sorted(self.shallow))
        return "--shallow-file", path

    async def take(self, part: Part, wanted: Iterable[str], *, known: Iterable[str]) -> None:
        """Bring in what `wanted` reach and the store has not, cut where it is on the host already.

        known: commits that the store has whole. Raises WorkNotKept.
        """
        repository = part.repository
        tips = dict.fromkeys(wanted)
        there = await existing(repository, {*tips, *known, part.brought_commit})
        if missing := [commit for commit in tips if commit not in there]:
            raise GitFailed("cat-file", f"has not {missing[0]}, which it named")
        if part.brought_commit in there:
            tips.setdefault(part.brought_commit)
        if part.cuts is None:
            raise GitFailed("rev-list", "failed: the history is damaged")
        cut = set(part.cuts)
        lines = [f"--shallow {commit}" for commit in sorted(self.shallow | cut)]
        lines += [*tips, *(f"^{commit}" for commit in dict.fromkeys(known) if commit in there)]
        self._count += 1
        pack = f"{self._folder}/{self._count}.pack"
        with open(pack, "xb") as sink:
            made = await repository.git_to(
                sink,
                *("pack-objects", "--revs", "--thin", "--delta-base-offset", "--stdout", "-q"),
                stdin="".join(f"{line}\n" for line in lines).encode(),
                most=min(MOST_PACK, self._room()),
            )
        if made.status:
            raise GitFailed("pack-objects", "failed: the repository is damaged", details=made.stderr)
        await self._index(pack, cut)

    def _room(self) -> int:
        free = shutil.disk_usage(self._folder).free - KEEP_FREE
        if free <= 0:
            raise BangerError(
                ErrorCode.NO_SPACE,
                "the host's disk has no room for the work of a VM",
                hint="make room on the host's disk, and repeat",
            )
        return free

    async def _index(self, pack: str, cut: set[str]) -> None:
        before = self.shallow
        self.shallow = before | cut  # while links are checked: these commits may lack their parents
        strict = ",".join(f"{name}=ignore" for name in TOLERATED)
        try:
            with open(pack, "rb") as file:
                indexed = await self._store.git_from(
                    file,
                    *self._shallow_words(),
                    *("index-pack", "--stdin", "--fix-thin", f"--strict={strict}"),
                    env=self._env,
                )
        finally:
            self.shallow = before
            os.unlink(pack)
        if indexed.status:
            raise WorkNotKept(_refusal(indexed.stderr), details=indexed.stderr)
        new = await self._cut_off(cut)
        self.new_cuts |= new
        self.shallow = before | new

    async def _cut_off(self, cut: set[str]) -> set[str]:
        """Those of the cuts that came now and whose parents are not here: the store's shallow commits."""
        store_has = await existing(self._store, cut)
        came = sorted(commit for commit in cut if commit not in store_has)
        parents: dict[str, list[str]] = {}
        for commit in came:
            shown = await self.git("cat-file", "commit", commit)
            if not shown.status:
                header = shown.stdout.partition(b"\n\n")[0].decode("ascii", "replace")
                parents[commit] = [
                    line[len("parent ") :] for line in header.splitlines() if line.startswith("parent ")
                ]
        wanted = sorted({parent for each in parents.values() for parent in each})
        here = await existing(self, wanted)
        return {commit for commit, each in parents.items() if any(parent not in here for parent in each)}

    async def check(self, tips: Mapping[str, str]) -> None:
        """Nothing that the tips need is missing, and each is what its name says."""
        there = await existing(self, tips.values())
        for name, commit in tips.items():
            kind = there.get(commit, ("", ""))[1]
            if not kind:
                raise WorkNotKept(f"the repository named {name!a}, but did not send it")
            if kind != "commit" and not _ANY_KIND.search(name):
                raise WorkNotKept(f"{name!a} is no commit")
        reached = await self.git(
            *("rev-list", "--objects", "--quiet", "--stdin", "--not", "--all"),
            stdin="".join(f"{commit}\n" for commit in dict.fromkeys(tips.values())).encode(),
        )
        if reached.status:
            raise WorkNotKept("the repository did not send all of its history", details=reached.stderr)

    async def move_in(self) -> None:
        """Give the store what came: packs first, then the shallow file. No ref names it yet."""
        await in_thread(self._move_in)

    def _move_in(self) -> None:
        source, target = f"{self._folder}/objects/pack", f"{self._git_dir}/objects/pack"
        os.makedirs(target, exist_ok=True)
        # a pack counts from the moment that its index is there
        for name in sorted(os.listdir(source), key=lambda name: (name.endswith(".idx"), name)):
            os.rename(f"{source}/{name}", f"{target}/{name}")
        _sync_folder(target)
        if self.new_cuts:
            write_whole(
                f"{self._git_dir}/shallow", "".join(f"{commit}\n" for commit in sorted(self.shallow)).encode()
            )


def _refusal(stderr: str) -> str:
    """What index-pack found wrong, in a line."""
    lines = [line for line in stderr.splitlines() if line.startswith(("error: ", "fatal: "))]
    return (
        f"its objects are refused: {lines[0].partition(': ')[2][:200]!a}"
        if lines
        else "its objects are refused"
    )


def write_whole(path: str, content: bytes) -> None:
    """A file that is there whole or as it was before, also after a power cut."""
    temporary = f"{path}.new"
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(os.path.dirname(path))


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
