"""Staged files of a workspace as a repository: the host's git over a git folder of ours (adoption).

Used by workspace/: whoever stages makes one by `adopt`. No configuration, hook, filter or attribute file but
ours is read; the `.git`s that were staged are never used as git folders. All of it lies in the staging
folder, which WorkspaceService removes, also after a crash.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from typing import BinaryIO

from banger.system.errors import CommandTimeout
from banger.system.programs import find
from banger.system.run import Completed, run, run_to_fd
from banger.system.threads import in_thread
from banger.workspace.adoption import StagedTree, carry_over, hide_nested, locate
from banger.workspace.errors import GitFailed
from banger.workspace.repository import (
    COMMAND_TIMEOUT_S,
    COMMON_CONFIG,
    COMMON_ENV,
    MOST,
    STDERR_LENGTH,
    GitResult,
    command_words,
    configured,
    look_up_once,
)

HOST_ENV: Mapping[str, str] = {
    **COMMON_ENV,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "HOME": "/nonexistent",
}
HOST_CONFIG = (
    *COMMON_CONFIG,
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.packedGitLimit=1g",
    "core.packedGitWindowSize=64m",
    "protocol.allow=never",
    "diff.ignoreSubmodules=all",
)

MOST_MEMORY = 8 << 30
"""Address space, in bytes, of a git that unpacks a guest's pack: a delta in it may claim any size."""

_TAKEN_OVER: Mapping[str, tuple[str, ...]] = {
    "core.filemode": ("true", "false"),
    "core.symlinks": ("true", "false"),
    "core.ignorecase": ("true", "false"),
    "core.autocrlf": ("true", "false", "input"),
    "core.eol": ("lf", "crlf", "native"),
}
"""Of a staged configuration: how files are compared, nothing that names a program or a path."""


class HostRepository:
    """Made by adopt. Methods raise WorkNotKept and CommandError."""

    linked = False  # one that was staged has a git folder of its own

    def __init__(
        self,
        git_dir: str,
        work_tree: str,
        *,
        how: str = "guest-files",
        tree: StagedTree | None = None,
        path: bytes = b"",
        notes: tuple[str, ...] = (),
        scratch: str = "",
    ) -> None:
        self.how = how
        self.notes = notes
        self._git_dir = git_dir
        self._work_tree = work_tree
        self._tree = tree
        self._path = path
        self._scratch = scratch or f"{git_dir}.scratch"

    @classmethod
    async def adopt(
        cls, tree_folder: str, own_folder: str, *, how: str, known_as: str = "/root/repo"
    ) -> HostRepository:
        """A repository over staged files: nothing of tree_folder/.git is trusted, it may be missing.

        own_folder: empty, on the same file system, for what git needs; known_as: the work tree's path in the
        guest. The nested `.git`s of tree_folder are moved to own_folder.
        """
        tree = StagedTree(os.fsencode(tree_folder), os.fsencode(known_as))
        await in_thread(partial(hide_nested, tree, os.fsencode(f"{own_folder}/nested")))
        return await cls._make(tree, f"{own_folder}/top.git", path=b"", how=how)

    @classmethod
    async def _make(cls, tree: StagedTree, git_dir: str, *, path: bytes, how: str) -> HostRepository:
        staged = await in_thread(partial(locate, tree, path))
        settings: dict[str, str] = {}
        if staged is not None:
            settings = await _settings(os.fsdecode(staged.common))
        form = settings.pop("extensions.objectformat", "sha1")
        work_tree = os.fsdecode(tree.root + b"/" + path if path else tree.root)
        notes: list[str] = []
        await bare_repository(git_dir, form)
        made = cls(git_dir, work_tree, how=how, tree=tree, path=path)
        for name, value in settings.items():
            await made.git("config", "--local", name, value)
        if staged is None:
            notes.append("The repository's .git is gone or damaged: only its files are kept.")
        else:
            notes += await in_thread(partial(carry_over, staged, os.fsencode(git_dir)))
            notes += await made._index_packs()
        made.notes = tuple(notes)
        return made

    async def git(
        self,
        *argv: str,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        most: int = MOST,
    ) -> GitResult:
        command = command_words(argv)
        try:
            ended = await run(
                self._words(argv),
                timeout_s=COMMAND_TIMEOUT_S,
                cwd=self._work_tree,
                env={**HOST_ENV, **(env or {})},
                input=stdin,
                check=False,
                output_limit=most,
            )
        except CommandTimeout as error:
            raise GitFailed(command, f"took longer than {COMMAND_TIMEOUT_S:g} s") from error
        if ended.truncated:
            raise GitFailed(command, f"said more than {most} bytes")
        return GitResult(ended.status, ended.stdout, _tail(ended))

    async def git_to(self, sink: BinaryIO, *argv: str, stdin: bytes | None = None, most: int) -> GitResult:
        command = command_words(argv)
        try:
            ended = await run_to_fd(
                self._words(argv),
                sink.fileno(),
                timeout_s=COMMAND_TIMEOUT_S,
                cwd=self._work_tree,
                env=HOST_ENV,
                stdin=stdin,
                check=False,
            )
        except CommandTimeout as error:
            raise GitFailed(command, f"took longer than {COMMAND_TIMEOUT_S:g} s") from error
        if os.fstat(sink.fileno()).st_size > most:
            raise GitFailed(command, f"said more than {most} bytes")
        return GitResult(ended.status, b"", _tail(ended))

    async def git_from(self, source: BinaryIO, *argv: str, env: Mapping[str, str]) -> GitResult:
        """As git, with stdin from an open file; what it says on stdout is thrown away."""
        command = command_words(argv)
        try:
            with open(os.devnull, "wb") as nothing:
                ended = await run_to_fd(
                    self._words(argv),
                    nothing.fileno(),
                    timeout_s=COMMAND_TIMEOUT_S,
                    cwd=self._work_tree,
                    env={**HOST_ENV, **env},
                    stdin=source.fileno(),
                    check=False,
                )
        except CommandTimeout as error:
            raise GitFailed(command, f"took longer than {COMMAND_TIMEOUT_S:g} s") from error
        return GitResult(ended.status, b"", _tail(ended))

    async def prepare(self) -> None:
        return

    async def look_up(self, names: Sequence[bytes]) -> list[bytes]:
        return await look_up_once(self, names)

    async def scratch(self) -> str:
        os.makedirs(self._scratch, mode=0o700, exist_ok=True)
        return self._scratch

    async def copy_index(self, target: str) -> bool:
        try:
            await in_thread(partial(shutil.copy2, f"{self._git_dir}/index", target, follow_symlinks=False))
        except FileNotFoundError:
            return False
        return True

    async def nested(self) -> tuple[bytes, ...]:
        if self._tree is None:
            return ()
        inside = self._path + b"/" if self._path else b""
        found = sorted(place for place in self._tree.moved if place.startswith(inside))
        outermost: list[bytes] = []
        for place in found:
            if not outermost or not place.startswith(outermost[-1] + b"/"):
                outermost.append(place)
        return tuple(place[len(inside) :] for place in outermost)

    async def sub(self, path: bytes) -> HostRepository | None:
        if self._tree is None:
            return None
        whole = self._path + b"/" + path if self._path else path
        if whole not in self._tree.moved:
            return None
        own = os.path.dirname(self._git_dir)
        git_dir = f"{own}/sub-{secrets.token_hex(8)}.git"
        return await self._make(self._tree, git_dir, path=whole, how=self.how)

    async def afresh(self) -> HostRepository:
        """The same files with an empty repository of their own: for a history that cannot be kept."""
        git_dir = f"{self._git_dir}.afresh"
        await bare_repository(git_dir, "sha1")
        return HostRepository(git_dir, self._work_tree, how=self.how, tree=self._tree, path=self._path)

    async def aclose(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            await in_thread(partial(shutil.rmtree, self._scratch))

    def _words(self, argv: tuple[str, ...]) -> list[str]:
        limited = "index-pack" in argv and find("prlimit") is not None
        return [
            *(("prlimit", f"--as={MOST_MEMORY}", "--") if limited else ()),
            "git",
            f"--git-dir={self._git_dir}",
            f"--work-tree={self._work_tree}",
            *configured(HOST_CONFIG),
            *argv,
        ]

    async def _index_packs(self) -> list[str]:
        """Make each pack's index anew; a damaged pack is left out, and said."""
        notes = []
        folder = f"{self._git_dir}/objects/pack"
        packs = [name for name in sorted(os.listdir(folder)) if name.endswith(".pack")]
        for name in packs:
            made = await self.git("index-pack", f"{folder}/{name}")
            if made.status:
                os.unlink(f"{folder}/{name}")
                notes.append("A pack of the repository is damaged: what only that had is not kept.")
        return notes


async def _settings(git_dir: str) -> dict[str, str]:
    """The few settings of a staged configuration that are taken over. includes are not followed."""
    listed = await run(
        ["git", "config", "--file", f"{git_dir}/config", "--no-includes", "--null", "--list"],
        timeout_s=COMMAND_TIMEOUT_S,
        cwd="/",
        env=HOST_ENV,
        check=False,
    )
    found: dict[str, str] = {}
    for line in listed.stdout.decode("utf-8", "replace").split("\0"):
        name, _, value = line.partition("\n")
        if value in _TAKEN_OVER.get(name, ()) or (
            name == "extensions.objectformat" and value in ("sha1", "sha256")
        ):
            found[name] = value
    return found


async def bare_repository(git_dir: str, form: str) -> None:
    """An empty repository of ours."""
    await run(
        ["git", "init", "--quiet", "--bare", "--template=", f"--object-format={form}", git_dir],
        timeout_s=COMMAND_TIMEOUT_S,
        cwd="/",
        env=HOST_ENV,
    )


def _tail(ended: Completed) -> str:
    return ended.stderr[-STDERR_LENGTH:].decode("utf-8", "replace").strip()
