"""For tests of the name server: questions as packets, who asks by UDP or TCP, an upstream with memory."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dnslib import EDNS0, QTYPE, RR, TXT, A, DNSRecord

WAIT_S = 50.0


def question(name: str, kind: str = "A", *, payload: int = 0, number: int = 4711) -> bytes:
    asked = DNSRecord.question(name, kind)
    asked.header.id = number
    if payload:
        asked.add_ar(EDNS0(udp_len=payload))
    return bytes(asked.pack())


def free_port(address: str = "127.0.0.1") -> int:
    """A number that nobody has, neither by UDP nor by TCP, and that the kernel gives nobody who asks for any
    port: whoever takes it in a moment finds it free still."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = random.randrange(first // 2, first)
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        ):
            try:
                stream.bind((address, port))
                datagrams.bind((address, port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free by UDP and by TCP")


class Asker(asyncio.DatagramProtocol):
    """A socket of its own; every answer is kept."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def at(cls, address: str, port: int, *, source: str = "127.0.0.1") -> Asker:
        loop = asyncio.get_running_loop()
        transport, asker = await loop.create_datagram_endpoint(
            cls, remote_addr=(address, port), local_addr=(source, 0)
        )
        asker.transport = transport
        return asker

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.heard.put_nowait(data)

    def send(self, packet: bytes) -> None:
        assert self.transport is not None
        self.transport.sendto(packet)

    async def ask(self, packet: bytes) -> DNSRecord:
        self.send(packet)
        async with asyncio.timeout(WAIT_S):
            return DNSRecord.parse(await self.heard.get())

    def close(self) -> None:
        assert self.transport is not None
        self.transport.close()


async def ask_by_tcp(address: str, port: int, packet: bytes) -> DNSRecord:
    async with asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_connection(address, port)
        try:
            writer.write(len(packet).to_bytes(2, "big") + packet)
            length = int.from_bytes(await reader.readexactly(2), "big")
            return DNSRecord.parse(await reader.readexactly(length))
        finally:
            writer.close()
            await writer.wait_closed()


class Upstream(asyncio.DatagramProtocol):
    """The host's resolver: every name is 192.0.2.1, a TXT is 3000 bytes. `twist` may change an answer."""

    def __init__(self) -> None:
        self.asked: list[DNSRecord] = []
        self.ports: set[int] = set()
        self.silent = False
        self.twist: Callable[[bytes], list[bytes]] = lambda answer: [answer]
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None

    @classmethod
    async def start(cls, address: str = "127.0.0.1", port: int = 0) -> Upstream:
        loop = asyncio.get_running_loop()
        local = (address, port or free_port(address))
        transport, made = await loop.create_datagram_endpoint(cls, local_addr=local)
        made._transport = transport
        made.port = transport.get_extra_info("sockname")[1]
        made._server = await asyncio.start_server(made._connected, address, made.port)
        return made

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.ports.add(addr[1])
        answer = self._answer(data)
        if not self.silent:
            assert self._transport is not None
            for packet in self.twist(answer):
                self._transport.sendto(packet, addr)

    def _answer(self, data: bytes) -> bytes:
        asked = DNSRecord.parse(data)
        self.asked.append(asked)
        answer = asked.reply(ra=1, aa=0)
        if asked.q.qtype == QTYPE.TXT:
            for _ in range(15):
                answer.add_answer(RR(asked.q.qname, QTYPE.TXT, ttl=60, rdata=TXT(b"x" * 200)))
        else:
            answer.add_answer(RR(asked.q.qname, QTYPE.A, ttl=60, rdata=A("192.0.2.1")))
        return bytes(answer.pack())

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(2), "big")
        answer = self._answer(await reader.readexactly(length))
        writer.write(len(answer).to_bytes(2, "big") + answer)
        await writer.drain()
        writer.close()

    def close(self) -> None:
        assert self._transport is not None
        assert self._server is not None
        self._transport.close()
        self._server.close()


@contextmanager
def closing(*things: Asker | Upstream) -> Iterator[None]:
    try:
        yield
    finally:
        for thing in things:
            thing.close()


async def serve() -> None:
    """An upstream where systemd-resolved has its own, until killed."""
    with closing(await Upstream.start("127.0.0.53", 53)):
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(serve())
