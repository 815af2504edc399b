"""The QMP client against a server that says whatever it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import ErrorCode
from banger.vmm.errors import MonitorError
from banger.vmm.qemu.qmp import Qmp, ShutdownData
from tests.fakes.looptime import pass_time

LIMIT_S = 50.0
GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
Answer = Callable[[str, int], list[bytes]]


@contextlib.asynccontextmanager
async def qemu(folder: Path, answer: Answer, *, greeting: bytes = GREETING) -> AsyncIterator[Qmp]:
    """answer(command, id) gives the lines to send; None among them hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(greeting)
            while line := await reader.readline():
                request = json.loads(line)
                if request["execute"] == "qmp_capabilities":
                    writer.write(b'{"return": {}, "id": %d}\r\n' % request["id"])
                    continue
                for reply in answer(request["execute"], request["id"]):
                    if not reply:
                        writer.close()
                        return
                    writer.write(reply + b"\r\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "fc.sock")
    client = Qmp(str(folder), timeout_s=LIMIT_S)
    try:
        yield client
    finally:
        await client.close()
        server.close()
        await server.wait_closed()


@pytest.mark.anyio
async def test_events_and_stray_replies_are_passed_over(tmp_path: Path) -> None:
    def answer(command: str, number: int) -> list[bytes]:
        return [
            b'{"event": "RESUME", "timestamp": {}}',
            b'{"return": {"status": "stale"}, "id": 99}',
            b'{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}',
            b'{"return": {"status": "running"}, "id": %d}' % number,
        ]

    async with qemu(tmp_path, answer) as client:
        assert await client.status() == "running"
        assert client.shutdown == ShutdownData(guest=True, reason="guest-reset")


@pytest.mark.anyio
async def test_a_refusal_keeps_the_connection(tmp_path: Path) -> None:
    def answer(command: str, number: int) -> list[bytes]:
        if command == "cont":
            return [b'{"error": {"class": "GenericError", "desc": "not\\n now"}, "id": %d}' % number]
        return [b'{"return": {"status": "paused"}, "id": %d}' % number]

    async with qemu(tmp_path, answer) as client:
        with pytest.raises(MonitorError, match=r"^QEMU refused cont: not now$"):
            await client.execute("cont")
        assert await client.status() == "paused"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([b"not json"], ErrorCode.MONITOR_FAILED),
        ([b'"a string"'], ErrorCode.MONITOR_FAILED),
        ([b"x" * 600_000], ErrorCode.MONITOR_FAILED),
        ([b'{"event": "X"}'] * 2000, ErrorCode.MONITOR_FAILED),
        ([b""], ErrorCode.MONITOR_FAILED),
        ([], ErrorCode.TIMEOUT),
    ],
    ids=["no json", "no object", "over-long", "event storm", "hang-up", "silence"],
)
async def test_what_is_no_answer_is_an_error(lines: list[bytes], code: ErrorCode, tmp_path: Path) -> None:
    broken = True

    def answer(command: str, number: int) -> list[bytes]:
        if broken and not lines:
            pass_time(LIMIT_S)
        return lines if broken else [b'{"return": {"status": "running"}, "id": %d}' % number]

    async with qemu(tmp_path, answer) as client:
        with pytest.raises(MonitorError) as caught:
            await client.execute("stop")
        assert caught.value.code is code
        broken = False
        assert await client.status() == "running"  # by a new connection


@pytest.mark.anyio
async def test_something_else_on_the_socket(tmp_path: Path) -> None:
    async with qemu(tmp_path, lambda *_: [], greeting=b"SSH-2.0-OpenSSH_9.2\r\n") as client:
        with pytest.raises(MonitorError, match="makes no sense"):
            await client.connect()
    (tmp_path / "fc.sock").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        await Qmp(str(tmp_path)).connect()


@given(st.binary(max_size=200).filter(lambda line: b"\n" not in line and line))
def test_any_line_is_an_answer_or_an_error(line: bytes) -> None:
    """Never a hang, never another exception."""

    async def check() -> None:
        reader = asyncio.StreamReader(limit=1 << 16)
        reader.feed_data(line + b"\n")
        reader.feed_eof()
        client = Qmp("/nonexistent")
        client._streams = (reader, None)  # type: ignore[assignment]
        with contextlib.suppress(ValueError, EOFError):
            await client._read()

    asyncio.run(check())
