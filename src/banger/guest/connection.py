"""One connection to a guest's agent: reached through the VM's v.sock, speaking frames.

Owned by whoever opened it, for one request. Everything has a deadline; what the guest sends is bounded
by the wire's limits. Nothing is left behind on the host after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

from banger.guest import wire
from banger.guest.errors import GuestTimeout, GuestUnreachable
from banger.guest.wire import Fields, Frame, WireError
from banger.system import unix

SOCKET = "v.sock"
BUFFER_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Hello:
    """What an agent says of itself. features: names; one that is missing is not supported."""

    version: int
    features: frozenset[str]
    agent: str
    boot_id: str


def parse_hello(payload: bytes) -> Hello:
    """Raises WireError."""
    fields = Fields(payload)
    return Hello(
        version=fields.number(wire.HELLO_VERSION),
        features=frozenset(fields.text(wire.HELLO_FEATURES).split()),
        agent=fields.text(wire.HELLO_AGENT, most=64),
        boot_id=fields.text(wire.HELLO_BOOT_ID, most=64),
    )


class FrameStream:
    """Frames over a connected socket, which it owns."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def over(cls, connected: socket.socket) -> FrameStream:
        try:
            reader, writer = await asyncio.open_unix_connection(sock=connected, limit=BUFFER_BYTES)
        except BaseException:
            connected.close()
            raise
        return cls(reader, writer)

    async def read(self) -> Frame | None:
        """The next frame, or None at the end of the stream. Raises WireError or OSError; no deadline."""
        try:
            header = await self.reader.readexactly(wire.WIRE_HEADER_BYTES)
            length, frame_type = wire.decode_header(header)
            return Frame(frame_type, await self.reader.readexactly(length))
        except asyncio.IncompleteReadError as error:
            if error.partial or error.expected != wire.WIRE_HEADER_BYTES:
                raise WireError("the stream ends in the middle of a frame") from None
            return None

    async def write(self, data: bytes) -> None:
        """Bytes of whole frames; waits while the guest takes none. Raises OSError."""
        self.writer.write(data)
        await self.writer.drain()

    async def aclose(self) -> None:
        """Close at once; what is buffered and unsent is dropped."""
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass  # it was broken already


async def open_connection(vm_dir: str, *, timeout_s: float) -> tuple[FrameStream, Hello]:
    """Connect to the agent of the VM in vm_dir and read its HELLO. Raises GuestUnreachable, GuestTimeout."""
    async with _within(timeout_s):
        stream = await _reach(f"{vm_dir}/{SOCKET}", timeout_s)
        try:
            return stream, await _read_hello(stream)
        except BaseException:
            await stream.aclose()
            raise


async def open_stream(path: str, *, timeout_s: float) -> FrameStream:
    """Connected through the monitor's socket at path; nothing of the agent's is read yet. Raises likewise."""
    async with _within(timeout_s):
        return await _reach(path, timeout_s)


@contextlib.asynccontextmanager
async def _within(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise GuestTimeout("answer", timeout_s) from error
    except (OSError, WireError, asyncio.IncompleteReadError) as error:
        raise GuestUnreachable("the guest's agent does not answer", details=repr(error)) from error


async def _reach(path: str, timeout_s: float) -> FrameStream:
    stream = await FrameStream.over(await unix.connect_async(path, timeout_s=timeout_s))
    try:
        await stream.write(wire.connect_line(wire.WIRE_AGENT_PORT))
        answer = b""
        while not wire.connected(answer):  # by the byte: what follows is the agent's
            answer += await stream.reader.readexactly(1)
        return stream
    except BaseException:
        await stream.aclose()
        raise


async def _read_hello(stream: FrameStream) -> Hello:
    frame = await stream.read()
    if frame is None or frame.type != wire.FRAME_HELLO:
        raise WireError("the agent does not say HELLO")
    hello = parse_hello(frame.payload)
    if hello.version < 1:
        raise WireError("the agent speaks no version of the protocol")
    return hello
