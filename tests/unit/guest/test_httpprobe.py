"""Which servers count as http or https, and that none of them holds the question up or fills memory."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from banger.guest import httpprobe
from banger.guest.httpprobe import http_scheme

pytestmark = pytest.mark.anyio
CERTIFICATE = Path(__file__).parents[2] / "data" / "throwaway-tls.pem"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handler: Handler, *, tls: bool = False) -> AsyncIterator[int]:
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.transport.abort()

    made = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield made.sockets[0].getsockname()[1]
    finally:
        made.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(reply: bytes, asked: list[bytes] | None = None) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(4) != b"HEAD":
            return  # it knows no TLS
        request = b"HEAD" + await reader.readuntil(b"\r\n\r\n")
        if asked is not None:
            asked.append(request)
        writer.write(reply)
        await writer.drain()
        await reader.read()

    return handler


def greeting(banner: bytes, asked: list[bytes]) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        asked.append(await reader.read())

    return handler


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    while await reader.read(100):
        pass


async def hanging_up(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def flooding(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    while True:
        writer.write(b"H" * 65536)
        await writer.drain()


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    for byte in b"HTTP/1.1 ":
        writer.write(bytes([byte]))
        await asyncio.sleep(0.2)
    await asyncio.sleep(60)


async def scheme(port: int, timeout_s: float = 60.0) -> str:
    return await http_scheme("127.0.0.1", port, host="web.vm", timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "http"),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", "http"),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://elsewhere.invalid/\r\n\r\n", "http"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "http"),
        (b"+OK redis\r\n", ""),
        (b"HTTP/9999999999999", ""),
        (b"", ""),
    ],
)
async def test_plain_servers(reply: bytes, expected: str) -> None:
    async with server(answering(reply)) as port:
        assert await scheme(port, 60.0 if expected else 0.5) == expected


async def test_it_asks_politely_and_follows_nothing() -> None:
    asked: list[bytes] = []
    async with server(answering(b"HTTP/1.1 302 Found\r\nLocation: /loop\r\n\r\n", asked)) as port:
        assert await scheme(port) == "http"
    (request,) = asked
    assert request.startswith(b"HEAD / HTTP/1.1\r\n")
    assert f"Host: web.vm:{port}\r\n".encode() in request


async def test_https_with_a_certificate_that_nobody_signed() -> None:
    async with server(answering(b"HTTP/1.1 200 OK\r\n\r\n"), tls=True) as port:
        assert await scheme(port) == "https"


async def test_who_speaks_first_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpprobe, "SPEAKS_FIRST_S", 60.0)
    asked: list[bytes] = []
    async with server(greeting(b"SSH-2.0-OpenSSH_9.2\r\n", asked)) as port:
        assert await scheme(port) == ""
    assert b"".join(asked) == b""


@pytest.mark.parametrize("handler", [silent, hanging_up, flooding, dripping])
async def test_bad_servers_cost_no_more_than_the_deadline(handler: Handler) -> None:
    async with server(handler) as port:
        began = time.monotonic()
        assert await scheme(port, 0.7) == ""
        assert time.monotonic() - began < 20


async def test_nobody_there() -> None:
    async with server(silent) as port:
        pass
    assert await scheme(port) == ""
