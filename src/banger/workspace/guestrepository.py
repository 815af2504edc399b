"""A repository in a running guest: the guest's own git, run through its agent.

Used by WorkspaceService. All that comes back is a guest's word. The repository's refs and index are never
touched; objects may be written to it. Starting programs is what costs an emulated guest most: only git is
started, and as seldom as can be. A crash leaves a folder below the guest's /run (guestscratch).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import BinaryIO

from banger.errors import BangerError
from banger.guest.agent import AgentClient
from banger.guest.errors import AgentRefused
from banger.guest.stream import ExecStream, Exited, Stderr, Stdout
from banger.system.threads import in_thread
from banger.workspace.errors import GitFailed, GitMissing, NoRepository
from banger.workspace.guestlookup import Lookup
from banger.workspace.guestscratch import Scratch
from banger.workspace.repository import (
    BATCH_CHECK,
    COMMAND_TIMEOUT_S,
    COMMON_CONFIG,
    COMMON_ENV,
    MOST,
    STDERR_LENGTH,
    GitResult,
    command_words,
    configured,
)

SCRATCH_ROOTS = ("/run", "/tmp")
GIT = "git"
_CLEAN_TIMEOUT_S = 10.0
_WRITE_AT = 1 << 20

_NO_FILES = ("config", "rev-parse", "for-each-ref", "reflog", "rev-list")
"""These have no use for filters."""

_Take = Callable[[bytes], Awaitable[None]]


class GuestRepository:
    """The repository at `path` in the guest of vm_dir. Raises WorkNotKept and AgentClient's errors."""

    how = "guest-git"
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        vm_dir: str,
        path: str,
        *,
        scratch_roots: Sequence[str] = SCRATCH_ROOTS,
        outer: GuestRepository | None = None,
        linked: bool = False,
    ) -> None:
        """outer: the one that this one is inside of, which is closed after it."""
        self.linked = linked
        self._client = AgentClient(vm_dir)
        self._vm_dir = vm_dir
        self._path = path
        self._is_outermost = outer is None
        self._shared: Scratch = outer._shared if outer is not None else Scratch(vm_dir, scratch_roots)
        self._lookup: Lookup = outer._lookup if outer is not None else Lookup()
        self._scratch: str | None = None
        self._filters: tuple[str, ...] | None = None

    async def git(
        self,
        *argv: str,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        most: int = MOST,
    ) -> GitResult:
        kept = bytearray()

        async def take(data: bytes) -> None:
            if len(kept) + len(data) > most:
                raise GitFailed(command_words(argv), f"said more than {most} bytes")
            kept.extend(data)

        status, stderr = await self._git(argv, stdin=stdin, env=env, take=take)
        return GitResult(status, bytes(kept), stderr)

    async def git_to(self, sink: BinaryIO, *argv: str, stdin: bytes | None = None, most: int) -> GitResult:
        waiting = bytearray()
        written = 0

        async def take(data: bytes) -> None:
            nonlocal written
            written += len(data)
            if written > most:
                raise GitFailed(command_words(argv), f"said more than {most} bytes")
            waiting.extend(data)
            if len(waiting) >= _WRITE_AT:
                await in_thread(partial(sink.write, bytes(waiting)))
                waiting.clear()

        status, stderr = await self._git(argv, stdin=stdin, env=None, take=take)
        await in_thread(partial(sink.write, bytes(waiting)))
        return GitResult(status, b"", stderr)

    async def prepare(self) -> None:
        self._filters = await self._unfiltered()

    async def look_up(self, names: Sequence[bytes]) -> list[bytes]:
        argv = [*self._words(), *BATCH_CHECK]

        async def start() -> ExecStream:
            return await self._client.exec(argv, COMMON_ENV, cwd=self._path, stdin=True)

        with self._understood(argv):
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                return await self._lookup.ask(self, start, names)

    async def scratch(self) -> str:
        if self._scratch is None:
            self._scratch = await self._shared.folder()
        return self._scratch

    async def copy_index(self, target: str) -> bool:
        usual = f"{self._path}/.git/index"
        if await self._shared.copy(usual, target):
            return True
        where = await self.git("rev-parse", "--git-path", "index")  # a submodule's is elsewhere
        if where.status:
            raise NoRepository
        place = os.path.join(self._path, os.fsdecode(where.stdout.rstrip(b"\n")))
        return place != usual and await self._shared.copy(place, target)

    async def nested(self) -> tuple[bytes, ...]:
        return ()

    async def sub(self, path: bytes) -> GuestRepository | None:
        if b"\0" in path or b".." in path.split(b"/"):
            return None
        inner = GuestRepository(self._vm_dir, f"{self._path}/{os.fsdecode(path)}", outer=self)
        try:
            where = await inner.git("rev-parse", "--git-dir", "--git-common-dir")
        except GitMissing:
            raise
        except NoRepository:
            return None
        if where.status:
            return None
        lines = where.stdout.split(b"\n")[:-1]
        half = len(lines) // 2
        inner.linked = lines[:half] != lines[half:]
        return inner

    async def aclose(self) -> None:
        """Idempotent. The outermost one removes what they all left in the guest."""
        self._scratch = None
        if self._is_outermost:
            await self._lookup.aclose()
            with contextlib.suppress(BangerError, TimeoutError):
                async with asyncio.timeout(_CLEAN_TIMEOUT_S):
                    await self._shared.clear()
        await self._client.aclose()

    def _words(self) -> list[str]:
        return [
            *(GIT, f"--git-dir={self._path}/.git", f"--work-tree={self._path}"),
            *configured(COMMON_CONFIG),
        ]

    async def _git(
        self,
        argv: tuple[str, ...],
        *,
        stdin: bytes | None,
        env: Mapping[str, str] | None,
        take: _Take,
    ) -> tuple[int, str]:
        if self._filters is None and argv[0] not in _NO_FILES:
            await self.prepare()
        return await self._run(
            [*self._words(), *configured(self._filters or ()), *argv],
            stdin=stdin,
            env={**COMMON_ENV, **(env or {})},
            take=take,
        )

    async def _unfiltered(self) -> tuple[str, ...]:
        """Settings that turn off each filter the guest has: files are kept as they are, not as pointers."""
        listed = await self.git("config", "--name-only", "-z", "--get-regexp", r"^filter\.")
        names = {name.rpartition(b".")[0].partition(b".")[2] for name in listed.stdout.split(b"\0")}
        drivers = [os.fsdecode(name) for name in sorted(names) if name and b"=" not in name]
        return tuple(
            f"filter.{driver}.{setting}"
            for driver in drivers[:64]
            for setting in ("clean=", "smudge=", "process=", "required=false")
        )

    async def _run(
        self, argv: list[str], *, stdin: bytes | None, env: Mapping[str, str], take: _Take
    ) -> tuple[int, str]:
        """Run git in the work tree: its status and the last of what it said on stderr."""
        with self._understood(argv):
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                stream = await self._client.exec(argv, env, cwd=self._path, stdin=stdin is not None)
                async with stream:
                    return await _follow(stream, stdin, take)

    @contextlib.contextmanager
    def _understood(self, argv: list[str]) -> Iterator[None]:
        """What the agent refuses, in words of a repository's."""
        try:
            yield
        except AgentRefused as error:
            if error.agent_code == "not_found":
                raise GitMissing from error
            raise NoRepository(f"its folder cannot be entered ({error.brief})") from error
        except TimeoutError as error:
            raise GitFailed(
                command_words(tuple(argv)), f"took longer than {COMMAND_TIMEOUT_S:g} s"
            ) from error


async def _follow(stream: ExecStream, stdin: bytes | None, take: _Take) -> tuple[int, str]:
    """Feed stdin while its output is read, to the exit."""
    feeding = asyncio.create_task(_feed(stream, stdin), name="guest git stdin")
    stderr = bytearray()
    status = 255
    try:
        async for event in stream:
            if isinstance(event, Stdout):
                await take(event.data)
            elif isinstance(event, Stderr):
                stderr += event.data
                del stderr[:-STDERR_LENGTH]
            elif isinstance(event, Exited):
                status = event.status
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    return status, bytes(stderr).decode("utf-8", "replace").strip()


async def _feed(stream: ExecStream, stdin: bytes | None) -> None:
    if stdin is None:
        return
    if stdin:
        await stream.send_stdin(stdin)
    await stream.close_stdin()
