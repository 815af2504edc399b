"""AgentClient against guests that lie, stall or go: a scripted agent on a Unix socket."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.guest import wire
from banger.guest.agent import AgentClient
from banger.guest.errors import AgentRefused, GuestTimeout, GuestUnreachable
from banger.guest.stream import Exited, Stdout
from banger.guest.wire import encode_fields, encode_frame

pytestmark = pytest.mark.anyio

HELLO = encode_frame(wire.FRAME_HELLO, encode_fields([(1, 1), (2, "exec"), (3, "1"), (4, "b")]))
STARTED = encode_frame(wire.FRAME_STARTED, encode_fields([(1, 77)]))
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def saying(*answers: bytes) -> Script:
    """Greets, then says these bytes; the connection closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"".join(answers))
        await writer.drain()
        await reader.read(1)

    return script


@asynccontextmanager
async def guest(folder: Path, script: Script) -> AsyncIterator[AgentClient]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, folder / "v.sock")
    client = AgentClient(str(folder), timeout_s=60)
    try:
        yield client
    finally:
        await client.aclose()
        server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"NO\n",
        b"OK " + b"1" * 100,
        b"OK 1\n",
        b"OK 1\n" + STARTED,
        b"OK 1\n" + encode_frame(wire.FRAME_HELLO, encode_fields([(1, 0)])),
        b"OK 1\n" + encode_frame(wire.FRAME_HELLO, b"\x01\x08"),
        b"OK 1\n" + struct.pack("<IB", 1 << 31, 1),
        b"OK 1\n" + HELLO,
        b"OK 1\n" + HELLO + STARTED,
        b"OK 1\n" + HELLO + encode_frame(wire.FRAME_OK, encode_fields([(1, b"no number")])),
    ],
)
async def test_nonsense_is_an_unreachable_guest(tmp_path: Path, answer: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        await writer.drain()

    async with guest(tmp_path, script) as client:
        with pytest.raises(GuestUnreachable) as caught:
            await client.health()
    assert caught.value.code == ErrorCode.GUEST_UNREACHABLE


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(GuestUnreachable):
        await AgentClient(str(tmp_path)).health()
    with pytest.raises(GuestUnreachable):
        await AgentClient.connect(str(tmp_path / "no-such-folder"))


async def test_a_silent_guest_times_out(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with guest(tmp_path, script):
        with pytest.raises(GuestTimeout):
            await AgentClient.connect(str(tmp_path), timeout_s=0.1)


async def test_an_agent_without_the_feature_refuses(tmp_path: Path) -> None:
    error = encode_frame(wire.FRAME_ERROR, encode_fields([(1, "unsupported"), (2, "what?\x1b[m"), (3, 5)]))
    async with guest(tmp_path, saying(b"OK 1\n", HELLO, error)) as client:
        with pytest.raises(AgentRefused) as caught:
            await client.sync()
    assert (caught.value.agent_code, caught.value.errno, caught.value.exit_status) == ("unsupported", 5, 125)
    assert "\x1b" not in caught.value.brief


async def test_requests_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(BangerError) as caught:
        await AgentClient(str(tmp_path)).exec(["a\0b"])
    assert caught.value.code == ErrorCode.INVALID_ARGUMENT


async def test_a_guest_that_dies_in_the_middle(tmp_path: Path) -> None:
    output = encode_frame(wire.FRAME_STDOUT, b"half")

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"OK 1\n" + HELLO)
        await reader.read(100)
        writer.write(STARTED + output + b"\x05\0")
        await writer.drain()

    async with guest(tmp_path, script) as client, await client.exec(["true"]) as stream:
        assert stream.pid == 77
        assert await anext(stream) == Stdout(b"half")
        with pytest.raises(GuestUnreachable):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await stream.send_stdin(b"to nobody")


async def test_a_window_too_wide_is_refused(tmp_path: Path) -> None:
    window = encode_frame(wire.FRAME_WINDOW, encode_fields([(1, 1)]))
    script = saying(b"OK 1\n", HELLO, STARTED, window)
    async with guest(tmp_path, script) as client, await client.exec(["true"], stdin=True) as stream:
        with pytest.raises(GuestUnreachable):
            await anext(stream)


async def test_stdin_keeps_to_the_window(tmp_path: Path) -> None:
    received = 0
    full = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await reader.readline()
        writer.write(b"OK 1\n" + HELLO + STARTED)
        frames = wire.FrameReader()
        while received < wire.WIRE_STDIN_WINDOW:
            received += count(frames.feed(await reader.read(65536)))
        full.set()
        try:
            async with asyncio.timeout(0.2):
                received += count(frames.feed(await reader.read(65536)))
        except TimeoutError:
            pass
        assert received == wire.WIRE_STDIN_WINDOW
        writer.write(encode_frame(wire.FRAME_WINDOW, encode_fields([(1, 100000)])))
        while received < wire.WIRE_STDIN_WINDOW + 100000:
            received += count(frames.feed(await reader.read(65536)))
        writer.write(encode_frame(wire.FRAME_EXIT, encode_fields([(2, 15)])))
        await reader.read()

    def count(frames: list[wire.Frame]) -> int:
        return sum(len(frame.payload) for frame in frames if frame.type == wire.FRAME_STDIN)

    async with (
        asyncio.timeout(60),
        guest(tmp_path, script) as client,
        await client.exec(["cat"], stdin=True) as stream,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(stream.send_stdin(b"x" * 1_000_000))  # returns though the rest is never taken
        await full.wait()
        exited = await anext(stream)
    assert exited == Exited(None, 15)
    assert isinstance(exited, Exited)
    assert exited.status == 143
    assert received == wire.WIRE_STDIN_WINDOW + 100000
