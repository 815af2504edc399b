"""One address and port that DNS is served on, by UDP and TCP, in the daemon's own loop.

Here, because it is cheap: an answer takes about a tenth of a millisecond, an asker over its rate a hundredth,
and each turn of the loop takes a few of them only, so that a storm makes the rest wait milliseconds. A
thread would take the interpreter's lock for longer, and a process would have to be kept. Everything is
bounded: sizes, rates, connections, their time. Sockets close with the daemon; nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Coroutine
from functools import partial
from typing import NamedTuple

from banger.network.dnsforward import Forwarder
from banger.network.dnslimit import Buckets, Places
from banger.network.dnspacket import MAX_QUERY, Query, RCode, fitted, read_query, reply
from banger.network.dnszone import Verdict, Zone
from banger.system.lockorder import unheld

log = logging.getLogger(__name__)

ANSWERS_A_TURN = 16
DATAGRAMS_A_TURN = 256
"""With those that are over their rate: reading them quickly leaves the others room in the socket's buffer."""
_SOCKET_BUFFER = 4 << 20
_SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>; for root, past net.core.rmem_max


class Limits(NamedTuple):
    """per_second, burst: queries of one source. Seconds; connections in all and of one source."""

    per_second: float = 200.0
    burst: float = 400.0
    connections: int = 128
    connections_per_source: int = 8
    idle_s: float = 5.0
    connection_s: float = 30.0


FOR_GUESTS = Limits()
FOR_HOST = Limits(per_second=2000.0, burst=5000.0, connections_per_source=64)
"""All programs of the host come from one address."""


class DNSServer:
    """Not serving until `open`; `close` may be called at any time and more than once."""

    def __init__(
        self,
        zone: Zone,
        forwarder: Forwarder | None = None,
        *,
        for_guests: bool = False,
        limits: Limits = FOR_GUESTS,
    ) -> None:
        self._zone = zone
        self._forwarder = forwarder
        self._for_guests = for_guests
        self._limits = limits
        self._buckets = Buckets(per_second=limits.per_second, burst=limits.burst)
        self._datagrams: socket.socket | None = None
        self._streams: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections = Places(most=limits.connections, per_source=limits.connections_per_source)

    @property
    def is_open(self) -> bool:
        return self._datagrams is not None

    def port(self) -> int:
        if self._datagrams is None:
            raise RuntimeError("not open")
        return int(self._datagrams.getsockname()[1])

    async def open(self, address: str, port: int) -> None:
        """Bind both, or neither: OSError."""
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            for bound in (datagrams, stream):
                bound.setblocking(False)
            with contextlib.suppress(PermissionError):  # then it is as long as it is
                datagrams.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _SOCKET_BUFFER)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            datagrams.bind((address, port))
            stream.bind((address, datagrams.getsockname()[1]))
            self._streams = await asyncio.start_server(
                self._connected, sock=stream, limit=MAX_QUERY + 2, backlog=64
            )
        except BaseException:
            datagrams.close()
            stream.close()
            raise
        self._datagrams = datagrams
        asyncio.get_running_loop().add_reader(datagrams, self._receive)

    async def close(self) -> None:
        datagrams, self._datagrams = self._datagrams, None
        streams, self._streams = self._streams, None
        if datagrams is not None:
            asyncio.get_running_loop().remove_reader(datagrams)
            datagrams.close()
        if streams is not None:
            streams.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # datagrams

    def _receive(self) -> None:
        answers = ANSWERS_A_TURN
        for _ in range(DATAGRAMS_A_TURN):
            if self._datagrams is None or not answers:
                return
            try:
                packet, sender = self._datagrams.recvfrom(MAX_QUERY + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # an asker's port that is closed by now
                log.debug("dns: %s", error)
                return
            if self._buckets.take(sender[0]):
                answers -= 1
                self._take_datagram(packet, sender)

    def _take_datagram(self, packet: bytes, sender: tuple[str, int]) -> None:
        query = read_query(packet)
        if query is None:
            return
        answer = self._zone.answer(query, source=sender[0], for_guests=self._for_guests)
        if isinstance(answer, bytes):
            self._send(fitted(answer, query, query.datagram_limit()), sender)
        elif self._forwarder is not None and self._forwarder.places.reserve(sender[0]):
            task = self._keep(self._forward(query, sender, forwarder=self._forwarder))
            task.add_done_callback(partial(_released, self._forwarder, sender[0]))
        else:
            self._send(reply(query, RCode.SERVFAIL, recursion_available=True), sender)

    async def _forward(self, query: Query, sender: tuple[str, int], *, forwarder: Forwarder) -> None:
        answer = await forwarder.ask(query, tcp=False)
        self._send(answer or reply(query, RCode.SERVFAIL, recursion_available=True), sender)

    def _send(self, packet: bytes, receiver: tuple[str, int]) -> None:
        """A reply that does not fit the socket's buffer is lost, as datagrams are."""
        if self._datagrams is not None:
            with contextlib.suppress(OSError):
                self._datagrams.sendto(packet, receiver)

    # connections

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        source = str(peer[0]) if peer else ""
        if self._streams is None or not self._connections.reserve(source):
            writer.transport.abort()
            return
        writer.transport.set_write_buffer_limits(0)  # drained is: with the kernel
        task = self._keep(self._converse(reader, writer, source=source))
        task.add_done_callback(partial(self._ended, writer, source))

    def _ended(self, writer: asyncio.StreamWriter, source: str, _task: object) -> None:
        writer.transport.abort()
        self._connections.release(source)

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, source: str
    ) -> None:
        try:
            async with asyncio.timeout(self._limits.connection_s):
                while await self._exchange(reader, writer, source=source):
                    pass
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            log.debug("dns: %s went away, or is too slow", source)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, source: str
    ) -> bool:
        """One query and its reply; False when the connection is to end."""
        async with asyncio.timeout(self._limits.idle_s):
            length = int.from_bytes(await reader.readexactly(2), "big")
            if length > MAX_QUERY or not self._buckets.take(source):
                return False
            packet = await reader.readexactly(length)
        query = read_query(packet)
        if query is None:
            return False
        answer = self._zone.answer(query, source=source, for_guests=self._for_guests)
        if answer is Verdict.FORWARD:
            answer = await self._forward_stream(query, source)
        assert isinstance(answer, bytes)
        writer.write(len(answer).to_bytes(2, "big") + answer)
        async with asyncio.timeout(self._limits.idle_s):
            await writer.drain()
        return True

    async def _forward_stream(self, query: Query, source: str) -> bytes:
        answer = None
        if self._forwarder is not None and self._forwarder.places.reserve(source):
            try:
                answer = await self._forwarder.ask(query, tcp=True)
            finally:
                self._forwarder.places.release(source)
        return answer or reply(query, RCode.SERVFAIL, recursion_available=True)

    def _keep(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, context=unheld())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("dns: an answer failed", exc_info=error)


def _released(forwarder: Forwarder, source: str, _task: object) -> None:
    forwarder.places.release(source)
