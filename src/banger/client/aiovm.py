"""A VM as an object in an event loop: the asynchronous twin of client/vm.py, method by method.

Commands are read by the loop; all else is a blocking call in a thread of its own (client/aiocalls.py).
Leaving the `async with` of one that was made by `AsyncClient.run` deletes it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Literal, overload

from banger.client.aiocalls import in_loop, in_thread, iterate
from banger.client.aioprocess import AsyncProcess, Opening, open_wire
from banger.client.aiosession import AsyncSession, hang_up
from banger.client.values import MAX_OUTPUT_BYTES, CommandTimeout, OnProgress, Result
from banger.client.vm import MAX_FILE_BYTES, SIZE, VM, Argv, Command, settled
from banger.errors import BangerError

if TYPE_CHECKING:
    from banger.client import shapes
    from banger.client.copy import Copied


class AsyncVM:
    """One VM. `info` is what was known when it was last asked; refresh() asks again."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm

    def __repr__(self) -> str:
        return f"<banger.AsyncVM {self.name} {self.state}>"

    async def __aenter__(self) -> AsyncVM:
        return self

    async def __aexit__(self, _kind: object, failure: BaseException | None, _trace: object) -> None:
        if not self._vm.ends_with_its_block:
            return
        # a task that is cancelled meanwhile still deletes
        deleting = asyncio.ensure_future(in_thread(self._vm.delete))
        try:
            await asyncio.shield(deleting)
        except asyncio.CancelledError:
            await asyncio.wait({deleting})
            raise
        except BangerError as error:
            if failure is None:
                raise
            failure.add_note(f"banger: {self.name} could not be deleted: {error}")

    # what it is

    @property
    def blocking(self) -> VM:
        """The same VM, for what has no asynchronous twin: to be used in a thread."""
        return self._vm

    @property
    def info(self) -> shapes.VM:
        """VMReply of docs/api.md."""
        return self._vm.info

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self._vm.id

    @property
    def name(self) -> str:
        """Given, or made up; also the guest's host name."""
        return self._vm.name

    @property
    def state(self) -> str:
        """created, starting, running, stopping, stopped or error, as of the last refresh."""
        return self._vm.state

    @property
    def image(self) -> str:
        """The name of what it was made from; "" where that is gone."""
        return self._vm.image

    @property
    def ip(self) -> str:
        """On the bridge; kept for the VM's life."""
        return self._vm.ip

    @property
    def dns_name(self) -> str:
        """As banger's own name server knows it while it runs: NAME.vm."""
        return self._vm.dns_name

    @property
    def workspace(self) -> shapes.Workspace | None:
        """The repository that was brought in, if there is one: commands start there."""
        return self._vm.workspace

    async def refresh(self) -> AsyncVM:
        """Ask again; itself. NOT_FOUND when it is gone."""
        await in_thread(self._vm.refresh)
        return self

    # its life

    async def start(self, *, progress: OnProgress | None = None) -> AsyncVM:
        """Boot it; itself. One that runs is left as it is."""
        tell = in_loop(progress)
        await in_thread(lambda: self._vm.start(progress=tell))
        return self

    async def stop(self, *, progress: OnProgress | None = None) -> AsyncVM:
        """Shut the guest down in order; itself. No error when it does not run."""
        tell = in_loop(progress)
        await in_thread(lambda: self._vm.stop(progress=tell))
        return self

    async def restart(self, *, progress: OnProgress | None = None) -> AsyncVM:
        """Stop and start; itself."""
        tell = in_loop(progress)
        await in_thread(lambda: self._vm.restart(progress=tell))
        return self

    async def kill(self, signal: str = "TERM", *, progress: OnProgress | None = None) -> AsyncVM:
        """Signal the machine itself, as pulling its plug: TERM KILL INT HUP QUIT USR1 USR2 or ABRT."""
        tell = in_loop(progress)
        await in_thread(lambda: self._vm.kill(signal, progress=tell))
        return self

    async def delete(self, *, discard_work: bool = False, progress: OnProgress | None = None) -> None:
        """End it and remove all of it. One that is gone already is no error.

        Work in its workspace is kept first (see work()), or this fails with WORK_NOT_KEPT and the VM stays;
        discard_work: it is not, nor what was kept before.
        """
        tell = in_loop(progress)
        await in_thread(lambda: self._vm.delete(discard_work=discard_work, progress=tell))

    async def set(
        self,
        *,
        vcpu: int | None = None,
        memory: int | str | None = None,
        disk_size: int | str | None = None,
        nat: bool | None = None,
        progress: OnProgress | None = None,
    ) -> AsyncVM:
        """Change it; itself. What cannot change while it runs does at the next start."""
        tell = in_loop(progress)
        await in_thread(
            lambda: self._vm.set(vcpu=vcpu, memory=memory, disk_size=disk_size, nat=nat, progress=tell)
        )
        return self

    async def publish(self, *ports: str | int) -> AsyncVM:
        """Ports of the guest's on this host, as `vm publish` takes them: 80, "8080:80"; itself."""
        await in_thread(lambda: self._vm.publish(*ports))
        return self

    async def unpublish(self, *ports: str | int, everything: bool = False) -> AsyncVM:
        """Take published ports back, by their port on the host; itself."""
        await in_thread(lambda: self._vm.unpublish(*ports, everything=everything))
        return self

    # how it is

    async def health(self) -> shapes.Health:
        """Whether it runs and its agent answers. One that does not run is not healthy."""
        return await in_thread(self._vm.health)

    async def stats(self) -> shapes.VMStats:
        """Its figures, taken now."""
        return await in_thread(self._vm.stats)

    async def ports(self) -> shapes.Ports:
        """Who listens in the guest, and what is published."""
        return await in_thread(self._vm.ports)

    def logs(
        self,
        *,
        source: Literal["console", "monitor"] = "console",
        follow: bool = False,
        tail: int | None = None,
    ) -> AsyncIterator[bytes]:
        """The console's log or the machine monitor's, in raw pieces; follow: without end."""
        return iterate(lambda: self._vm.logs(source=source, follow=follow, tail=tail))

    # commands

    @overload
    async def exec(
        self,
        argv: Argv,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        input: bytes | str | None = None,
        timeout: float | None = None,
        check: bool = True,
        text: Literal[False] = False,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Result[bytes]: ...

    @overload
    async def exec(
        self,
        argv: Argv,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        input: bytes | str | None = None,
        timeout: float | None = None,
        check: bool = True,
        text: Literal[True],
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Result[str]: ...

    async def exec(
        self,
        argv: Argv,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        input: bytes | str | None = None,
        timeout: float | None = None,
        check: bool = True,
        text: bool = False,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Result[bytes] | Result[str]:
        """Run a command to its end, as VM.exec does. Cancelled, it is killed in the guest."""
        command = self._vm._command(argv, cwd, env, user, stdin=input is not None)
        try:
            async with await self._open(command) as process:
                result = await process.communicate(input, timeout, max_output_bytes=max_output_bytes)
        except CommandTimeout as late:
            if not text:
                raise
            raise late.as_text() from None
        return settled(result, check=check, text=text)

    def popen(
        self,
        argv: Argv,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        stdin: bool = False,
        terminal: bool = False,
        size: tuple[int, int] = SIZE,
    ) -> Opening[AsyncProcess]:
        """Start a command, in `async with`, whose end kills it; the rest is as for VM.popen."""
        command = self._vm._command(argv, cwd, env, user, stdin=stdin, terminal=terminal, size=size)
        return Opening(lambda: self._open(command))

    # files

    async def copy_in(
        self,
        source: str | os.PathLike[str],
        destination: str,
        *,
        owners: bool = False,
        follow: bool = False,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Copied:
        """A file or folder of this host's into the guest, by docker cp's rules (docs/copy.md).

        owners: keep owners, set-id bits and special files. follow: a link as source means what it points to.
        on_bytes: told the bytes so far, often, in the thread that copies.
        """
        return await in_thread(
            lambda: self._vm.copy_in(source, destination, owners=owners, follow=follow, on_bytes=on_bytes)
        )

    async def copy_out(
        self,
        source: str,
        destination: str | os.PathLike[str],
        *,
        owners: bool = False,
        follow: bool = False,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Copied:
        """A file or folder of the guest's to this host. The files are the caller's, without set-id bits."""
        return await in_thread(
            lambda: self._vm.copy_out(source, destination, owners=owners, follow=follow, on_bytes=on_bytes)
        )

    async def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Root's, in a folder that is there; whole or not at all. One that is there is replaced."""
        await in_thread(lambda: self._vm.write_file(path, data, mode=mode))

    async def read_file(self, path: str, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """NOT_FOUND; INVALID_ARGUMENT for a folder or anything longer than max_bytes."""
        return await in_thread(lambda: self._vm.read_file(path, max_bytes=max_bytes))

    # sessions

    async def session(
        self,
        argv: Argv,
        *,
        name: str = "",
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        user: str = "",
        tags: Mapping[str, str] | None = None,
        stdin: bool = False,
        terminal: bool = False,
        size: tuple[int, int] = SIZE,
    ) -> AsyncSession:
        """Start a command that outlives this program and the daemon; its logs are kept in the guest.

        One that cannot be launched is a session, too: its status is `failed`.
        """
        return AsyncSession(
            await in_thread(
                lambda: self._vm.session(
                    argv,
                    name=name,
                    cwd=cwd,
                    env=env,
                    user=user,
                    tags=tags,
                    stdin=stdin,
                    terminal=terminal,
                    size=size,
                )
            )
        )

    async def sessions(self) -> list[AsyncSession]:
        """Oldest first."""
        return [AsyncSession(session) for session in await in_thread(self._vm.sessions)]

    async def get_session(self, reference: str) -> AsyncSession:
        """By full id, exact name or unique id prefix. NOT_FOUND."""
        return AsyncSession(await in_thread(lambda: self._vm.get_session(reference)))

    # its workspace

    async def keep_work(self, *, ignored: bool = False, progress: OnProgress | None = None) -> shapes.Work:
        """Keep what is in its workspace and not on this host, now: on the host, in banger's own store.

        ignored: with the files that git ignores. It is what stop and delete do by themselves. WORK_NOT_KEPT.
        """
        tell = in_loop(progress)
        return await in_thread(lambda: self._vm.keep_work(ignored=ignored, progress=tell))

    async def work(self) -> shapes.Work:
        """What is kept of it: Work of docs/api.md. Of a VM that is gone: list_work. NOT_FOUND."""
        return await in_thread(self._vm.work)

    def patch(self, *, base: str = "") -> AsyncIterator[bytes]:
        """What was kept as a patch for `git apply`, in pieces: from a commit, or from what was brought in."""
        return iterate(lambda: self._vm.patch(base=base))

    # the network

    async def connect(
        self, port: int, *, timeout: float = 0.0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to a TCP port on the guest's own loopback; needs neither NAT nor published ports.

        timeout: seconds to wait for somebody to listen there; then GUEST_ERROR.
        """
        connection = await in_thread(
            lambda: self._vm.connect(port, timeout=timeout), discard=lambda connection: connection.close()
        )
        try:
            return await asyncio.open_connection(sock=connection)
        except BaseException:
            connection.close()
            raise

    # underneath

    async def _open(self, command: Command) -> AsyncProcess:
        connection = await in_thread(self._vm._reach, discard=hang_up)
        dialogue = command(connection.workspace)
        return AsyncProcess(await open_wire(connection, dialogue), dialogue)
