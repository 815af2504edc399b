"""A command running in a guest: its events out, its stdin, resizes and signals in.

Owned by the caller of AgentClient.exec, who reads it to the end or closes it; closing it while the command
runs is a hangup there. One task reads the connection, into a bounded queue: a caller who stops reading
stops the command's output, and with it the window for more stdin.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from banger.guest import wire
from banger.guest.connection import FrameStream
from banger.guest.errors import AgentRefused, GuestUnreachable
from banger.guest.wire import Fields, Frame, WireError

QUEUE_FRAMES = 16


@dataclass(frozen=True, slots=True)
class Stdout:
    data: bytes


@dataclass(frozen=True, slots=True)
class Stderr:
    data: bytes


@dataclass(frozen=True, slots=True)
class Exited:
    """The last event. code: 0 to 255, or None when signal is the number that ended the command."""

    code: int | None
    signal: int | None

    @property
    def status(self) -> int:
        """As a shell has it: the code, or 128 and the signal."""
        return self.code if self.code is not None else 128 + (self.signal or 0)


Event = Stdout | Stderr | Exited


def refusal(payload: bytes) -> AgentRefused:
    """What an ERROR frame says. Raises WireError."""
    fields = Fields(payload)
    return AgentRefused(
        fields.text(wire.ERROR_CODE, most=64),
        fields.text(wire.ERROR_MESSAGE, most=1024),
        errno=fields.number(wire.ERROR_ERRNO),
    )


class ExecStream:
    """`async for event in stream`; an async context manager. pid: the command's, in the guest."""

    def __init__(self, stream: FrameStream, *, pid: int) -> None:
        self.pid = pid
        self._stream = stream
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue(QUEUE_FRAMES)
        self._window = wire.WIRE_STDIN_WINDOW
        self._window_news = asyncio.Event()
        self._over = False
        self._finished = False
        self._stdin_lock = asyncio.Lock()
        self._reader = asyncio.create_task(self._read(), name="guest exec reader")

    async def __aenter__(self) -> ExecStream:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    def __aiter__(self) -> ExecStream:
        return self

    async def __anext__(self) -> Event:
        """Raises GuestUnreachable when the guest goes in the middle, AgentRefused when it breaks off."""
        if self._finished:
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, Exception):
            self._finished = True
            raise event
        self._finished = isinstance(event, Exited)
        return event

    async def send_stdin(self, data: bytes) -> None:
        """Waits for the window; returns early when the command has ended. Needs somebody who reads events."""
        async with self._stdin_lock:
            view = memoryview(data)
            while view and not self._over:
                if self._window == 0:
                    self._window_news.clear()
                    await self._window_news.wait()
                    continue
                piece = view[: min(self._window, wire.WIRE_MAX_PAYLOAD)]
                self._window -= len(piece)
                await self._send(wire.encode_stdin(bytes(piece)))
                view = view[len(piece) :]

    async def close_stdin(self) -> None:
        """End of file for the command."""
        async with self._stdin_lock:
            await self._send(wire.encode_stdin(b""))

    async def resize(self, rows: int, cols: int) -> None:
        await self._send(wire.encode_resize(rows, cols))

    async def signal(self, number: int) -> None:
        """To the command's process group."""
        await self._send(wire.encode_signal(number))

    async def aclose(self) -> None:
        """Idempotent. A command that still runs is hung up."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._end()
        await self._stream.aclose()

    async def _send(self, data: bytes) -> None:
        if self._over:
            return
        try:
            await self._stream.write(data)
        except OSError:
            self._end()  # the reader's news says why

    def _end(self) -> None:
        self._over = True
        self._window_news.set()

    async def _read(self) -> None:
        try:
            await self._events.put(await self._read_to_exit())
        except (OSError, WireError) as error:
            lost = GuestUnreachable("the guest went away while the command ran", details=repr(error))
            await self._events.put(lost)
        except AgentRefused as error:
            await self._events.put(error)
        finally:
            self._end()

    async def _read_to_exit(self) -> Exited:
        while (frame := await self._stream.read()) is not None:
            exited = await self._take(frame)
            if exited is not None:
                self._end()
                return exited
        raise WireError("the stream ended without EXIT")

    async def _take(self, frame: Frame) -> Exited | None:
        if frame.type == wire.FRAME_STDOUT:
            await self._events.put(Stdout(frame.payload))
        elif frame.type == wire.FRAME_STDERR:
            await self._events.put(Stderr(frame.payload))
        elif frame.type == wire.FRAME_WINDOW:
            more = Fields(frame.payload).number(wire.WINDOW_BYTES)
            if self._window + more > wire.WIRE_STDIN_WINDOW:
                raise WireError("the agent opens the window too wide")
            self._window += more
            self._window_news.set()
        elif frame.type == wire.FRAME_ERROR:
            raise refusal(frame.payload)
        elif frame.type == wire.FRAME_EXIT:
            fields = Fields(frame.payload)
            if wire.EXIT_SIGNAL in fields:
                return Exited(None, fields.number(wire.EXIT_SIGNAL) & 0x7F)
            return Exited(fields.number(wire.EXIT_CODE) & 0xFF, None)
        return None
