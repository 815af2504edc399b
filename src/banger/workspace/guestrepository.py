"""A repository in a running guest: the guest's own git, run through its agent.

Used by WorkspaceService. All that comes back is a guest's word. The repository's refs and index are never
touched; objects may be written to it. A crash leaves a folder below the guest's /run, gone at its next boot.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import BinaryIO

from banger.errors import BangerError
from banger.guest.agent import AgentClient
from banger.guest.errors import AgentRefused
from banger.guest.stream import ExecStream, Exited, Stderr, Stdout
from banger.system.threads import in_thread
from banger.workspace.errors import GitFailed, GitMissing, NoRepository
from banger.workspace.repository import (
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

_Take = Callable[[bytes], Awaitable[None]]


class GuestRepository:
    """The repository at `path` in the guest of vm_dir. Raises WorkNotKept and AgentClient's errors."""

    how = "guest-git"
    notes: tuple[str, ...] = ()

    def __init__(self, vm_dir: str, path: str, *, scratch_roots: Sequence[str] = SCRATCH_ROOTS) -> None:
        self._client = AgentClient(vm_dir)
        self._vm_dir = vm_dir
        self._path = path
        self._scratch_roots = scratch_roots
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

    async def scratch(self) -> str:
        said = ""
        for root in self._scratch_roots if self._scratch is None else ():
            folder = f"{root}/banger-keep-{secrets.token_hex(8)}"
            status, said = await self._run(["mkdir", "-m", "700", "--", folder])
            if not status:
                self._scratch = folder
                break
        if self._scratch is None:
            raise GitFailed("mkdir", f"of a temporary folder failed in the guest: {said[:200]!a}")
        return self._scratch

    async def copy_index(self, target: str) -> bool:
        where = await self.git("rev-parse", "--git-path", "index")
        if where.status:
            raise NoRepository
        source = os.fsdecode(where.stdout.rstrip(b"\n"))
        status, said = await self._run(["cp", "-p", "--", source, target], cwd=self._path)
        if not status:
            return True
        status, _ = await self._run(["test", "-e", source], cwd=self._path)
        if status:
            return False
        raise GitFailed("cp", f"of the index failed in the guest: {said[:200]!a}")

    async def nested(self) -> tuple[bytes, ...]:
        return ()

    async def sub(self, path: bytes) -> GuestRepository | None:
        inner = GuestRepository(
            self._vm_dir, f"{self._path}/{os.fsdecode(path)}", scratch_roots=self._scratch_roots
        )
        if b"\0" in path or b".." in path.split(b"/"):
            return None
        status, _ = await self._run(["test", "-e", f"{inner._path}/.git"])
        if status or (await inner.git("rev-parse", "--git-dir")).status:
            return None
        return inner

    async def aclose(self) -> None:
        folder, self._scratch = self._scratch, None
        with contextlib.suppress(BangerError, TimeoutError):
            if folder is not None:
                async with asyncio.timeout(_CLEAN_TIMEOUT_S):
                    await self._run(["rm", "-rf", "--", folder])
        await self._client.aclose()

    async def _git(
        self,
        argv: tuple[str, ...],
        *,
        stdin: bytes | None,
        env: Mapping[str, str] | None,
        take: _Take,
    ) -> tuple[int, str]:
        if self._filters is None:
            self._filters = ()  # while they are being asked for
            self._filters = await self._unfiltered()
        words = [GIT, f"--git-dir={self._path}/.git", f"--work-tree={self._path}"]
        words += configured((*COMMON_CONFIG, *self._filters))
        return await self._run(
            [*words, *argv], cwd=self._path, stdin=stdin, env={**COMMON_ENV, **(env or {})}, take=take
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
        self,
        argv: list[str],
        *,
        cwd: str = "/",
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        take: _Take | None = None,
    ) -> tuple[int, str]:
        """Run a program of the guest's: its status and the last of what it said on stderr."""
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                stream = await self._client.exec(argv, env, cwd=cwd, stdin=stdin is not None)
                async with stream:
                    return await _follow(stream, stdin, take)
        except AgentRefused as error:
            if error.agent_code == "not_found" and argv[0] == GIT:
                raise GitMissing from error
            if cwd != "/":
                raise NoRepository(f"its folder cannot be entered ({error.brief})") from error
            raise
        except TimeoutError as error:
            raise GitFailed(
                command_words(tuple(argv)), f"took longer than {COMMAND_TIMEOUT_S:g} s"
            ) from error


async def _follow(stream: ExecStream, stdin: bytes | None, take: _Take | None) -> tuple[int, str]:
    """Feed stdin while its output is read, to the exit."""
    feeding = asyncio.create_task(_feed(stream, stdin), name="guest git stdin")
    stderr = bytearray()
    status = 255
    try:
        async for event in stream:
            if isinstance(event, Stdout):
                if take is not None:
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
