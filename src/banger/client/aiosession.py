"""A session of a guest's as an object, in an event loop: the asynchronous twin of client/session.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from banger.client.agentconnection import AgentConnection
from banger.client.aiocalls import in_thread
from banger.client.aioprocess import AsyncSessionStream, AsyncStream, Opening, open_wire
from banger.client.dialogue import AttachDialogue, LogsDialogue, SendDialogue
from banger.client.session import Session
from banger.client.values import Replay
from banger.model.sessions import LIVE, STOP_TIMEOUT_S

if TYPE_CHECKING:
    from banger.client import shapes


class AsyncSession:
    """A long-lived command in a guest."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __repr__(self) -> str:
        return f"<banger.AsyncSession {self.name} {self.status}>"

    @property
    def info(self) -> shapes.Session:
        """All that was known when it was last asked: GuestSession of docs/api.md."""
        return self._session.info

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return self._session.id

    @property
    def name(self) -> str:
        """Given, or made up."""
        return self._session.name

    @property
    def status(self) -> str:
        """starting, running, stopping, exited or failed, as of the last refresh."""
        return self._session.status

    @property
    def returncode(self) -> int | None:
        """None while it runs; -N when signal N ended it. As of the last refresh."""
        return self._session.returncode

    async def refresh(self) -> AsyncSession:
        """Ask again; itself."""
        await in_thread(self._session.refresh)
        return self

    async def wait(self) -> int:
        """Its return code, once it has ended. GUEST_ERROR if it never ran."""
        if self.status in LIVE:
            async with self.follow(tail=0) as stream:
                while await stream.read() is not None:
                    pass
            await self.refresh()
        return self._session.wait(timeout=0)

    async def logs(self, *, tail: int | None = None) -> bytes:
        """What it has written so far, stdout and stderr, all in memory; tail: the last lines of each."""
        async with self._logs(follow=False, tail=tail) as stream:
            return b"".join([piece.data async for piece in stream])

    def follow(self, *, tail: int | None = None) -> Opening[AsyncStream]:
        """What it has written and goes on to write, to its end: a stream to iterate, in `async with`."""
        return self._logs(follow=True, tail=tail)

    def attach(
        self, *, write: bool = False, replay: Replay = "unseen", size: tuple[int, int] = (24, 80)
    ) -> Opening[AsyncSessionStream]:
        """Its streams, in an `async with` whose end leaves the session running.

        write: its stdin, if it was started with one and nobody else has it (has_stdin says so). replay: what
        nobody attached has seen yet, all of the logs, or none of them.
        """

        async def opened() -> AsyncSessionStream:
            dialogue = AttachDialogue(self.id, write=write, replay=replay, size=size)
            stream = AsyncSessionStream(await open_wire(await self._reach(), dialogue), dialogue)
            try:
                await stream.wait_started()
            except BaseException:
                await stream.close()
                raise
            return stream

        return Opening(opened)

    async def send(self, data: bytes | str = b"", *, end: bool = False) -> None:
        """To its stdin, all of it before this returns; end: its stdin ends there."""
        dialogue = SendDialogue(self.id, end=end)
        async with AsyncStream(await open_wire(await self._reach(), dialogue)) as stream:
            await stream.write(data)
            await stream.close_stdin()
            await stream.read()

    async def signal(self, signal: str | int = "TERM") -> None:
        """To its process group."""
        await in_thread(lambda: self._session.signal(signal))

    async def stop(self, *, timeout: float = STOP_TIMEOUT_S) -> AsyncSession:
        """TERM, after `timeout` seconds KILL; itself, once it has ended."""
        await in_thread(lambda: self._session.stop(timeout=timeout))
        return self

    async def remove(self, *, force: bool = False) -> None:
        """It and its logs. IN_USE while it runs, unless force kills it first."""
        await in_thread(lambda: self._session.remove(force=force))

    def _logs(self, *, follow: bool, tail: int | None) -> Opening[AsyncStream]:
        async def opened() -> AsyncStream:
            dialogue = LogsDialogue(self.id, follow=follow, tail=tail)
            return AsyncStream(await open_wire(await self._reach(), dialogue))

        return Opening(opened)

    async def _reach(self) -> AgentConnection:
        return await in_thread(self._session._reach, discard=hang_up)


def hang_up(connection: AgentConnection) -> None:
    connection.socket.close()
