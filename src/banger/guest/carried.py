"""One connection of a published port: from an accepted socket of the host to a port in a guest, to both ends.

Used by carrier.py, in the process of its own that this is for; standard library only. Each direction holds
one piece at a time, so that who reads slowly slows who writes. A client whose guest was cut off hears a
reset, never an ordinary end: what it has is not all. Nothing is left after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import NamedTuple

from banger.guest import wire
from banger.system import unix

PIECE = wire.WIRE_MAX_PAYLOAD
DIAL_S = 75.0
"""The agent waits 60 s for a root that is still being mounted, and 10 s for the port."""
HANG_UP_S = 1.0
RESET = struct.pack("ii", 1, 0)  # struct linger: at once, and what is unsent is dropped


class Broken(Exception):
    """The guest's side ended in the middle, or said what it must not."""


class Port(NamedTuple):
    """vm: whose connections count together. address: the guest's, tried after its loopback; may be empty."""

    listener: socket.socket
    vm: str
    vm_dir: str
    address: str
    port: int


class Guest(NamedTuple):
    """A connection to a port in a guest. early: what has been read of it already."""

    connection: socket.socket
    frames: bool
    early: bytes


async def dial(port: Port) -> Guest:
    """Connected to the guest's port. Raises OSError, WireError or Broken."""
    connection = await unix.connect_async(f"{port.vm_dir}/v.sock", timeout_s=DIAL_S)
    try:
        return await _ask(connection, port)
    except BaseException:
        connection.close()
        raise


async def _ask(connection: socket.socket, port: Port) -> Guest:
    loop = asyncio.get_running_loop()
    data = bytearray()

    async def more() -> None:
        piece = await loop.sock_recv(connection, 4096)
        if not piece:
            raise Broken("the guest's agent went away")
        data.extend(piece)

    async def frame() -> tuple[int, bytes]:
        while len(data) < wire.WIRE_HEADER_BYTES:
            await more()
        length, kind = wire.decode_header(bytes(data[: wire.WIRE_HEADER_BYTES]))
        end = wire.WIRE_HEADER_BYTES + length
        while len(data) < end:
            await more()
        payload = bytes(data[wire.WIRE_HEADER_BYTES : end])
        del data[:end]
        return kind, payload

    await loop.sock_sendall(connection, wire.connect_line(wire.WIRE_AGENT_PORT))
    while not wire.connected(bytes(data[: data.find(b"\n") + 1 or None])):
        await more()
    del data[: data.index(b"\n") + 1]
    kind, payload = await frame()
    if kind != wire.FRAME_HELLO:
        raise Broken("the agent does not say HELLO")
    frames = "forward-frames" in wire.Fields(payload).text(wire.HELLO_FEATURES).split()
    fields: list[tuple[int, bytes | str | int]] = [
        (wire.FORWARD_PORT, port.port),
        (wire.FORWARD_FLAGS, wire.FORWARD_FLAG_FRAMES if frames else 0),
    ]
    if port.address:
        fields.append((wire.FORWARD_ADDRESS, port.address))
    request = wire.encode_frame(wire.FRAME_FORWARD, wire.encode_fields(fields))
    await loop.sock_sendall(connection, request)
    kind, _ = await frame()
    if kind != wire.FRAME_OK:
        raise Broken("the guest refuses")
    return Guest(connection, frames, bytes(data))


class Carried:
    """One connection: both directions, each with its own end, as TCP has it."""

    def __init__(self, client: socket.socket, guest: Guest) -> None:
        self._client = client
        self._guest = guest
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Until both have ended. Raises OSError, WireError or Broken when one was cut off."""
        up = asyncio.ensure_future(self._to_guest())
        down = asyncio.ensure_future(self._to_client())
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if up.done() and up.exception() is None:
                await asyncio.wait({down})
            for task in (up, down):
                if task.done():
                    task.result()
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _to_guest(self) -> None:
        connection = self._guest.connection
        while True:
            data = await self._loop.sock_recv(self._client, PIECE)
            try:
                if self._guest.frames:
                    await self._loop.sock_sendall(
                        connection, wire.encode_frame(wire.FRAME_FORWARD_DATA, data)
                    )
                elif data:
                    await self._loop.sock_sendall(connection, data)
                else:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                return  # it takes no more; what it has said is still on its way to the client
            if not data:
                return

    async def _to_client(self) -> None:
        if not self._guest.frames:
            data = self._guest.early or await self._receive()
            while data:
                await self._loop.sock_sendall(self._client, data)
                data = await self._receive()
            return
        held, left, ended = self._guest.early, 0, False
        while True:
            if not held or (not left and len(held) < wire.WIRE_HEADER_BYTES):
                data = await self._receive()
                if not data:
                    if ended:
                        return
                    raise Broken("the guest's side was cut off")
                held += data
            elif ended:
                raise Broken("bytes behind the end")
            elif left:
                piece, held = held[:left], held[left:]
                left -= len(piece)
                await self._loop.sock_sendall(self._client, piece)
            else:
                left, kind = wire.decode_header(held[: wire.WIRE_HEADER_BYTES])
                held = held[wire.WIRE_HEADER_BYTES :]
                if kind != wire.FRAME_FORWARD_DATA:
                    raise Broken("an unexpected frame")
                if not left:
                    ended = True
                    self._client.shutdown(socket.SHUT_WR)

    async def _receive(self) -> bytes:
        return await self._loop.sock_recv(self._guest.connection, PIECE + wire.WIRE_HEADER_BYTES)


async def hang_up(connection: socket.socket) -> None:
    """Close in the middle so that the agent learns of it: QEMU's bridge passes no reset on, but an end."""
    loop = asyncio.get_running_loop()
    with connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(HANG_UP_S):
            while await loop.sock_recv(connection, PIECE):
                pass


async def carry(client: socket.socket, port: Port) -> None:
    """From the accepted connection to its end, whatever that is. Raises nothing of the network's."""
    guest: Guest | None = None
    reset = True
    try:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(DIAL_S):
            guest = await dial(port)
        await Carried(client, guest).run()
        reset = False
    except (OSError, wire.WireError, Broken):  # TimeoutError is an OSError
        pass
    finally:
        if reset:
            with contextlib.suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        if guest is not None:
            await hang_up(guest.connection)
