"""Commands and sessions as streams in an event loop: the asynchronous twin of client/process.py.

No thread of its own: the guest's connection is read by the loop. Tasks may write while another reads. A task
that is cancelled in `async with` kills its command in the guest, as leaving the block does. asyncio and the
standard library only; after a crash of ours the agent hangs the command up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from banger.client.agentconnection import AgentConnection
from banger.client.dialogue import AttachDialogue, CommandDialogue, Dialogue, Lines
from banger.client.errors import GuestUnreachable
from banger.client.exchange import ANSWER_TIMEOUT_S
from banger.client.process import MAX_UNREAD, PART_S
from banger.client.streams import HANG_UP_S
from banger.client.values import (
    MAX_OUTPUT_BYTES,
    CommandTimeout,
    Output,
    OutputTooLong,
    Result,
    StreamName,
)
from banger.errors import BangerError, ErrorCode
from banger.model.sessions import signal_number

HIGH = 1 << 20
"""Output held here that nobody has taken: past it the guest is not read, unless a task writes."""


class _Wire(asyncio.Protocol):
    """The socket's end of a stream: bytes between the transport and the dialogue."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue: Dialogue = dialogue
        self.transport: asyncio.Transport | None = None
        self.full: bool = False  # the transport takes no more just now
        self.most: int = HIGH
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: set[asyncio.Future[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.dialogue.feed(data)
        self.throttle()
        self.changed()

    def eof_received(self) -> None:
        self.dialogue.feed(b"")
        self.changed()

    def connection_lost(self, exc: Exception | None) -> None:
        self.dialogue.lost(exc)
        self.transport = None
        self.full = False
        if not self.gone.done():
            self.gone.set_result(None)
        self.changed()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self.changed()

    def changed(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def change(self) -> None:
        """Until something came, went, or may be sent."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)

    def flush(self) -> None:
        outgoing = self.dialogue.outgoing
        if outgoing:
            if self.transport is not None and not self.transport.is_closing():
                self.transport.write(bytes(outgoing))
            outgoing.clear()

    def throttle(self) -> None:
        """The guest is read while what nobody has taken is little."""
        if self.transport is not None and not self.transport.is_closing():
            if self.dialogue.held <= self.most or self.dialogue.ended:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()


class AsyncStream:
    """Something's output, piece by piece, and its input. The base of AsyncProcess and AsyncSessionStream."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire
        self._dialogue = wire.dialogue
        self._reader: asyncio.Task[Any] | None = None  # who took output last
        self._writers = 0
        loop = asyncio.get_running_loop()
        self._no_answer = loop.call_later(ANSWER_TIMEOUT_S, self._give_up)

    async def __aenter__(self: S) -> S:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Each piece as it comes, to the end."""
        while (piece := await self.read()) is not None:
            yield piece

    async def lines(self, stream: StreamName | None = "stdout") -> AsyncIterator[str]:
        """Lines of one stream, without their ends; what comes on the other is dropped. None: of both.

        What is not UTF-8 becomes U+FFFD; a line longer than 1 MiB comes in pieces.
        """
        lines = Lines(stream)
        while (piece := await self.read()) is not None:
            for line in lines.feed(piece):
                yield line
        for line in lines.rest():
            yield line

    async def read(self) -> Output | None:
        """The next piece; None at the end."""
        dialogue = self._dialogue
        while True:
            self._reader = asyncio.current_task()
            piece = dialogue.take()
            self._wire.flush()
            self._wire.throttle()
            if piece is not None:
                self._wire.changed()
                return piece
            if dialogue.ended:
                await self._end()
                return None
            await self._wire.change()

    async def write(self, data: bytes | str) -> None:
        """All of it to the input; waits while the other end does not read. str: as UTF-8.

        WRONG_STATE when it has ended or takes no input; BUSY when its output, which no other task reads, has
        grown past 16 MiB meanwhile.
        """
        view = memoryview(data.encode() if isinstance(data, str) else data)
        dialogue = self._dialogue
        self._writers += 1
        self._wire.most = MAX_UNREAD + HIGH
        try:
            while view or self._wire.full:
                self._may_write()
                while view and not self._wire.full and (room := dialogue.room):
                    dialogue.put(bytes(view[:room]))
                    view = view[room:]
                    self._wire.flush()
                if not view and not self._wire.full:
                    return
                if dialogue.held > MAX_UNREAD and self._reader in (None, asyncio.current_task()):
                    raise BangerError(
                        ErrorCode.BUSY,
                        "the command waits for somebody to read its output",
                        hint="read it in another task, or use exec(…, input=…)",
                    )
                self._wire.throttle()
                await self._wire.change()
        finally:
            self._writers -= 1
            if not self._writers:
                self._wire.most = HIGH

    async def close_stdin(self) -> None:
        """The end of its input."""
        self._dialogue.end_input()
        self._wire.flush()

    async def close(self) -> None:
        """Once is enough. What the end means is said by the class."""
        self._no_answer.cancel()
        wire = self._wire
        transport = wire.transport
        if transport is None or transport.is_closing():
            await self._until_gone()
            return
        try:
            ended = self._dialogue.ended
            self._dialogue.part()
            wire.flush()
            self._dialogue.fail(BangerError(ErrorCode.ABORTED, "the stream was closed"))
            self._dialogue.failure = None
            wire.changed()
            if not ended:
                # the end of what we send is passed on where a reset is not: see client/streams.py
                wire.throttle()
                transport.write_eof()
                with suppress(TimeoutError, OSError):
                    async with asyncio.timeout(PART_S + HANG_UP_S):
                        await asyncio.shield(wire.gone)
        finally:
            transport.abort()
        await self._until_gone()

    # underneath

    async def _until_gone(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(HANG_UP_S):
                await asyncio.shield(self._wire.gone)

    def _give_up(self) -> None:
        if not self._dialogue.answered:
            self._dialogue.fail(GuestUnreachable("the guest's agent does not answer"))
            self._wire.changed()

    def _may_write(self) -> None:
        dialogue = self._dialogue
        if dialogue.failure is not None:
            raise dialogue.failure
        if dialogue.ended or dialogue.input_ended:
            why = "has ended" if dialogue.ended else "takes no input"
            raise BangerError(ErrorCode.WRONG_STATE, f"the command {why}")

    async def _end(self) -> None:
        """All has been read: our last words go out, and what went wrong is raised."""
        self._no_answer.cancel()
        self._dialogue.part()
        self._wire.flush()
        if self._wire.transport is not None:
            self._wire.transport.close()
        await self._until_gone()
        if self._dialogue.failure is not None:
            raise self._dialogue.failure


S = TypeVar("S", bound=AsyncStream)


async def open_wire(connection: AgentConnection, dialogue: Dialogue) -> _Wire:
    """The socket is the wire's from here on, and closed when that fails."""
    connection.socket.setblocking(False)
    try:
        _, wire = await asyncio.get_running_loop().create_connection(
            lambda: _Wire(dialogue), sock=connection.socket
        )
    except BaseException:
        connection.socket.close()
        raise
    if connection.early:
        dialogue.feed(connection.early)
    wire.flush()
    return wire


class AsyncProcess(AsyncStream):
    """A command in a guest. Leaving its `async with` kills it there if it still runs."""

    def __init__(self, wire: _Wire, dialogue: CommandDialogue) -> None:
        super().__init__(wire)
        self._command = dialogue
        self.args: tuple[str, ...] = dialogue.argv

    @property
    def pid(self) -> int:
        """In the guest; 0 until it is known."""
        return self._command.pid

    @property
    def returncode(self) -> int | None:
        """None until its end has been read; -N when signal N ended it."""
        return self._command.returncode

    async def signal(self, signal: str | int) -> None:
        """To its process group: "INT", "SIGUSR1" or a number. One that has ended takes no notice."""
        self._command.send_signal(signal_number(str(signal)))
        self._wire.flush()

    async def kill(self) -> None:
        """SIGKILL to its process group."""
        await self.signal("KILL")

    async def resize(self, rows: int, cols: int) -> None:
        """Of the terminal that it was started with."""
        self._command.resize(rows, cols)
        self._wire.flush()

    async def wait(self) -> int:
        """Its return code. Output that was not read is dropped."""
        await self._collect(None, most=None)
        return self._status()

    async def communicate(
        self,
        input: bytes | str | None = None,
        timeout: float | None = None,
        *,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Result[bytes]:
        """Give it `input` and its end, read all it writes, wait. CommandTimeout and OutputTooLong kill it."""
        data = b"" if input is None else input.encode() if isinstance(input, str) else input
        taken: dict[StreamName, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                await self._collect(memoryview(data), most=max_output_bytes, taken=taken)
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError) and limit.expired():
                raise CommandTimeout(
                    self.args, timeout or 0.0, stdout=bytes(taken["stdout"]), stderr=bytes(taken["stderr"])
                ) from None
            raise
        return Result(self.args, self._status(), bytes(taken["stdout"]), bytes(taken["stderr"]))

    async def _collect(
        self,
        input: memoryview | None,
        *,
        most: int | None,
        taken: dict[StreamName, bytearray] | None = None,
    ) -> None:
        dialogue = self._command
        total = 0
        while True:
            self._reader = asyncio.current_task()
            if input is not None and not dialogue.input_ended:
                while input and not self._wire.full and (room := dialogue.room):
                    dialogue.put(bytes(input[:room]))
                    input = input[room:]
                    self._wire.flush()
                if not input and dialogue.started:
                    dialogue.end_input()
            self._wire.flush()
            while (piece := dialogue.take()) is not None:
                total += len(piece.data)
                if most is not None and total > most:
                    raise OutputTooLong(self.args, most)
                if taken is not None:
                    taken[piece.stream] += piece.data
            self._wire.throttle()
            if dialogue.ended:
                await self._end()
                return
            await self._wire.change()

    def _status(self) -> int:
        if self._command.returncode is None:
            raise BangerError(ErrorCode.ABORTED, "the command was killed when its stream was closed")
        return self._command.returncode


class AsyncSessionStream(AsyncStream):
    """A session's output, and its input if it was asked for and nobody else has it. Leaving detaches."""

    def __init__(self, wire: _Wire, dialogue: AttachDialogue) -> None:
        super().__init__(wire)
        self._attached = dialogue

    @property
    def has_stdin(self) -> bool:
        """Whether write() is for us."""
        return self._attached.writer

    @property
    def returncode(self) -> int | None:
        """None while the session runs, and until its end has been read."""
        return self._attached.returncode

    async def wait_started(self) -> None:
        """Until the agent has let us in."""
        while not (self._attached.started or self._attached.ended):
            await self._wire.change()
        if self._attached.failure is not None:
            raise self._attached.failure

    def _may_write(self) -> None:
        super()._may_write()
        if self._attached.started and not self._attached.writer:
            raise BangerError(
                ErrorCode.WRONG_STATE,
                "the session's stdin is not ours",
                hint="attach(write=True), when nobody else has it and the session has one",
            )


class _Context(Protocol):
    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


T = TypeVar("T", bound=_Context)


class Opening(Generic[T]):
    """What is opened by `await`, or by `async with`, which closes it."""

    def __init__(self, opener: Callable[[], Awaitable[T]]) -> None:
        self._opener = opener
        self._opened: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        return self._opener().__await__()

    async def __aenter__(self) -> T:
        self._opened = await self._opener()
        await self._opened.__aenter__()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.__aexit__(kind, failure, trace)
