"""Bytes between an upgraded HTTP connection and a guest's agent, for clients that may not open v.sock.

Owned by one request each. No bytes are looked at here: both ends speak the agent's protocol. A client
that goes closes the guest's connection, which hangs up the command there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from aiohttp import web

from banger.guest.connection import FrameStream, open_stream
from banger.guest.errors import GuestTimeout, GuestUnreachable

PROTOCOL = "banger-agent/1"
CHUNK = 64 << 10
HIGH_WATER = 256 << 10
HANDSHAKE_TIMEOUT_S = 5.0


class ClientBytes:
    """The client's side of an upgraded request, as aiohttp's protocol hands it over."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._transport = request.transport
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._eof = False
        self._news = asyncio.Event()

    def attach(self) -> None:
        """From here on the connection's bytes come here. Call it after the 101: the client waits for that."""
        protocol: Any = self._request.protocol
        protocol.set_parser(self)

    # what aiohttp calls, as it does its WebSocket reader

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._chunks.append(bytes(data))
        self._size += len(data)
        if self._size > HIGH_WATER and self._transport is not None:
            self._transport.pause_reading()
        self._news.set()
        return False, b""

    def feed_eof(self) -> None:
        self._eof = True
        self._news.set()

    async def read(self) -> bytes:
        """The next bytes; b"" when the client has gone."""
        while not self._chunks:
            if self._eof:
                return b""
            self._news.clear()
            await self._news.wait()
        data = self._chunks.popleft()
        was_high = self._size > HIGH_WATER
        self._size -= len(data)
        if was_high and self._size <= HIGH_WATER and self._transport is not None:
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        transport.write(data)
        protocol: Any = self._request.protocol
        await protocol._drain_helper()


async def connect_guest(path: str) -> FrameStream:
    """To the agent through the monitor's socket, nothing read yet; else GUEST_UNREACHABLE, within 5 s."""
    try:
        return await open_stream(path, timeout_s=HANDSHAKE_TIMEOUT_S)
    except GuestTimeout as error:
        raise GuestUnreachable("the guest's agent does not answer", details=error.brief) from error


async def bridge(client: ClientBytes, guest: FrameStream) -> None:
    """Copy both ways until either end closes."""

    async def to_guest() -> None:
        while data := await client.read():
            await guest.write(data)

    async def to_client() -> None:
        while data := await guest.reader.read(CHUNK):
            await client.write(data)

    ways = {asyncio.create_task(to_guest()), asyncio.create_task(to_client())}
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        outcomes = await asyncio.gather(*ways, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
            raise outcome
