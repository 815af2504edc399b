"""The listener for READY and ENDING: hears, answers, survives a hostile guest, leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from banger.guest import ready, wire
from banger.guest.ready import ReadyListener
from banger.guest.wire import encode_fields, encode_frame
from banger.system import unix

pytestmark = pytest.mark.anyio

READY = encode_frame(
    wire.FRAME_READY, encode_fields([(1, 1), (2, "health exec"), (3, "1"), (4, "boot-id"), (99, b"new")])
)
ACK = encode_frame(wire.FRAME_ACK)


def ending(kind: str, message: str = "") -> bytes:
    return encode_frame(wire.FRAME_ENDING, encode_fields([(1, kind), (2, message)]))


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[ReadyListener]:
    made = ReadyListener(str(tmp_path))
    await made.start()
    yield made
    await made.aclose()


async def call(folder: Path, data: bytes) -> bytes:
    """What comes back before the listener closes."""
    connected = await unix.connect_async(f"{folder}/v.sock_1025", timeout_s=60)
    reader, writer = await asyncio.open_unix_connection(sock=connected)
    try:
        writer.write(data)
        try:
            async with asyncio.timeout(60):
                return await reader.read(5)
        except ConnectionResetError:
            return b""
    finally:
        writer.close()


async def test_ready_is_heard_and_acknowledged(listener: ReadyListener, tmp_path: Path) -> None:
    waiting = asyncio.create_task(listener.wait_ready())
    assert await call(tmp_path, READY) == ACK
    hello = await waiting
    assert (hello.features, hello.boot_id) == (frozenset({"health", "exec"}), "boot-id")
    assert await call(tmp_path, READY) == ACK  # once more does no harm


async def test_endings(tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []
    listener = ReadyListener(str(tmp_path), on_ending=lambda kind, message: heard.append((kind, message)))
    await listener.start()
    assert await call(tmp_path, ending("reboot")) == ACK
    assert (listener.ending, listener.ending_message) == ("reboot", "")
    assert await call(tmp_path, ending("failed", "cannot mount\x1b[1m /dev/vda")) == ACK
    assert heard == [("reboot", ""), ("failed", "cannot mount�[1m /dev/vda")]
    await listener.aclose()


@pytest.mark.parametrize(
    "data",
    [
        ending("dance"),
        encode_frame(wire.FRAME_ENDING, b"\x01\xff\xff\xff\xff"),
        encode_frame(wire.FRAME_READY, encode_fields([(1, b"three")])),
        encode_frame(wire.FRAME_EXEC, b""),
        struct.pack("<IB", 65537, wire.FRAME_READY),
        b"\xff" * 5,
    ],
)
async def test_nonsense_is_refused_and_the_next_call_heard(
    listener: ReadyListener, tmp_path: Path, data: bytes
) -> None:
    assert await call(tmp_path, data) == b""
    assert (listener.ready, listener.ending) == (None, "")
    assert await call(tmp_path, READY) == ACK


async def test_silent_callers_are_let_go(
    listener: ReadyListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "CALL_TIMEOUT_S", 0.2)
    silent = [
        await unix.connect_async(f"{tmp_path}/v.sock_1025", timeout_s=60) for _ in range(3 * ready.MAX_CALLS)
    ]
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(60):
        for connection in silent:  # three rounds of them
            assert await loop.sock_recv(connection, 1) == b""
            connection.close()
    monkeypatch.setattr(ready, "CALL_TIMEOUT_S", 60.0)
    assert await call(tmp_path, READY) == ACK


async def test_a_stale_socket_is_replaced_and_ours_removed(tmp_path: Path) -> None:
    path = tmp_path / "v.sock_1025"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    listener = ReadyListener(str(tmp_path))
    await listener.start()
    assert path.stat().st_mode & 0o777 == 0o600
    assert await call(tmp_path, READY) == ACK
    await listener.aclose()
    assert not path.exists()
    await listener.aclose()


async def test_a_file_in_its_place_is_no_socket_to_replace(tmp_path: Path) -> None:
    (tmp_path / "v.sock_1025").write_text("precious")
    with pytest.raises(FileExistsError):
        await ReadyListener(str(tmp_path)).start()
    assert (tmp_path / "v.sock_1025").read_text() == "precious"


async def test_closing_cuts_open_calls(
    listener: ReadyListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "CALL_TIMEOUT_S", 600.0)
    connected = await unix.connect_async(f"{tmp_path}/v.sock_1025", timeout_s=60)
    await asyncio.sleep(0.05)
    async with asyncio.timeout(60):
        await listener.aclose()
    connected.close()


async def test_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    listener = ReadyListener(str(folder))
    await listener.start()
    assert await call(folder, READY) == ACK
    await listener.aclose()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("turns", range(6))
async def test_a_call_at_the_very_end_leaves_no_descriptor(tmp_path: Path, turns: int) -> None:
    """Whatever turn of the loop it came in: before it was taken, before its task began, or later."""
    before = set(os.listdir("/proc/self/fd"))
    listener = ReadyListener(str(tmp_path))
    await listener.start()
    with unix.connect(f"{tmp_path}/v.sock_1025", timeout_s=60):
        for _ in range(turns):
            await asyncio.sleep(0)
        await listener.aclose()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_calls_beyond_the_bound_wait_for_a_free_place(tmp_path: Path, listener: ReadyListener) -> None:
    with contextlib.ExitStack() as silent:
        for _ in range(ready.MAX_CALLS):
            silent.enter_context(unix.connect(f"{tmp_path}/v.sock_1025", timeout_s=60))
        waiting = asyncio.create_task(call(tmp_path, READY))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
    assert await waiting == ACK
