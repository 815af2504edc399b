"""The name server on real sockets of loopback: UDP, TCP, bounds, forwarding, and a port that is taken."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from dnslib import QTYPE, DNSRecord

from banger.config.settings import Settings
from banger.network.dnsforward import Forwarder, HostServers, read_servers
from banger.network.dnslimit import Places
from banger.network.dnsserver import ANSWERS_A_TURN, DNSServer, Limits
from banger.network.dnszone import NamedGuest, Zone
from banger.network.names import Names
from tests.unit.network.dnsasks import Asker, Upstream, ask_by_tcp, closing, free_port, question

pytestmark = pytest.mark.anyio

GUEST, NATLESS, HOST = "127.0.0.2", "127.0.0.3", "127.0.0.1"
"""The whole of 127/8 is ours to send from: three askers."""
LIMITS = Limits(
    per_second=0.001, burst=40, connections=4, connections_per_source=2, idle_s=50, connection_s=50
)
LONG_S, SHORT_S = 50.0, 0.3
"""The time of a resolver that answers, and of one that does not."""


def zone() -> Zone:
    made = Zone("127.0.0.1", 8)
    made.put("1", NamedGuest("calm-otter", GUEST, nat=True))
    made.put("2", NamedGuest("red-fox", NATLESS, nat=False))
    return made


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    made = await Upstream.start()
    with closing(made):
        yield made


@pytest.fixture
async def server(upstream: Upstream) -> AsyncIterator[DNSServer]:
    forwarder = Forwarder(lambda: ("127.0.0.1",), port=upstream.port, try_s=LONG_S)
    made = DNSServer(zone(), forwarder, for_guests=True, limits=LIMITS)
    await made.open(HOST, free_port())
    yield made
    await made.close()
    await made.close()
    assert forwarder.places.held() == 0


async def eventually(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(50):
        while not holds():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def asker(server: DNSServer, source: str) -> Asker:
    return await Asker.at(HOST, server.port(), source=source)


async def test_by_datagram_and_by_stream_the_same(server: DNSServer) -> None:
    with closing(one := await asker(server, HOST)):
        by_datagram = await one.ask(question("calm-otter.vm"))
    by_stream = await ask_by_tcp(HOST, server.port(), question("calm-otter.vm"))
    assert [str(record.rdata) for record in by_datagram.rr] == [GUEST]
    assert by_stream.pack() == by_datagram.pack()


async def test_several_questions_on_one_connection(server: DNSServer) -> None:
    reader, writer = await asyncio.open_connection(HOST, server.port())
    packets = [
        question(name, number=n) for n, name in enumerate(("calm-otter.vm", "nobody.vm", "red-fox.vm"))
    ]
    writer.write(b"".join(len(packet).to_bytes(2, "big") + packet for packet in packets))
    for number, rcode in ((0, 0), (1, 3), (2, 0)):
        length = int.from_bytes(await reader.readexactly(2), "big")
        answer = DNSRecord.parse(await reader.readexactly(length))
        assert (answer.header.id, answer.header.rcode) == (number, rcode)
    writer.close()


@pytest.mark.parametrize("limits", [LIMITS._replace(idle_s=0.1), LIMITS._replace(connection_s=0.1)])
async def test_a_connection_that_only_lasts_is_ended(limits: Limits) -> None:
    server = DNSServer(zone(), limits=limits)
    await server.open(HOST, free_port())
    reader, writer = await asyncio.open_connection(HOST, server.port())
    assert await reader.read() == b""
    writer.close()
    await server.close()


@pytest.mark.parametrize("said", [b"\xff\xff", b"\x05\x00" + b"x" * 1280, b"\0\0", b"\0\x0c" + b"\xff" * 12])
async def test_nonsense_on_a_connection_ends_it(server: DNSServer, said: bytes) -> None:
    reader, writer = await asyncio.open_connection(HOST, server.port())
    writer.write(said)
    async with asyncio.timeout(50):
        with contextlib.suppress(ConnectionResetError):  # what we said was not read
            assert await reader.read() == b""
    writer.close()


async def test_connections_are_few_and_do_not_stay(server: DNSServer) -> None:
    held = [await asyncio.open_connection(HOST, server.port(), local_addr=(GUEST, 0)) for _ in range(12)]
    answer = await ask_by_tcp(HOST, server.port(), question("calm-otter.vm"))
    assert answer.header.rcode == 0, "another source has room"
    assert server._connections.held(GUEST) <= LIMITS.connections_per_source
    ended = [asyncio.ensure_future(reader.read()) for reader, _ in held]
    await eventually(lambda: sum(one.done() for one in ended) >= 12 - LIMITS.connections_per_source)
    for _, writer in held:
        writer.close()
    await asyncio.gather(*ended, return_exceptions=True)  # some hear of a reset
    await eventually(lambda: not server._connections.held())


async def test_a_storm_of_one_source_leaves_the_others_their_answers(server: DNSServer) -> None:
    storm, other = await asker(server, GUEST), await asker(server, NATLESS)
    with closing(storm, other):
        turns = 0
        for number in range(1000):
            storm.send(question("calm-otter.vm", number=number) if number % 5 else os.urandom(40))
            if number % 50 == 0:
                await asyncio.sleep(0)
                turns += 1
                if turns <= 20:
                    assert (await other.ask(question("red-fox.vm", number=number))).header.id == number
        assert storm.heard.qsize() <= LIMITS.burst
        assert storm.heard.qsize() > 0


async def test_a_full_queue_is_taken_in_pieces_so_that_the_loop_goes_on(server: DNSServer) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((NATLESS, 0))
        sender.settimeout(50)
        for number in range(40):
            sender.sendto(question("calm-otter.vm", number=number), (HOST, server.port()))
        taken: list[int] = []
        take = server._take_datagram

        def count(packet: bytes, source: tuple[str, int]) -> None:
            taken[-1] += 1
            take(packet, source)

        server._take_datagram = count  # type: ignore[assignment, method-assign]
        while sum(taken) < 40:
            taken.append(0)
            await asyncio.sleep(0)
        assert max(taken) <= ANSWERS_A_TURN


async def test_foreign_names_come_from_the_hosts_resolver(server: DNSServer, upstream: Upstream) -> None:
    fox, guest = await asker(server, NATLESS), await asker(server, GUEST)
    with closing(fox, guest):
        assert (await fox.ask(question("www.example.org"))).header.rcode == 5
        assert upstream.asked == []
        answers = [await guest.ask(question("WwW.Example.org", number=n)) for n in range(6)]
        assert (await ask_by_tcp(HOST, server.port(), question("www.example.org"))).header.rcode == 5
    assert {str(answer.rr[0].rdata) for answer in answers} == {"192.0.2.1"}
    assert [answer.header.id for answer in answers] == list(range(6))
    assert {str(answer.q.qname) for answer in answers} == {"WwW.Example.org."}
    assert len({asked.header.id for asked in upstream.asked}) > 1
    assert len(upstream.ports) > 1


async def test_long_answers_are_cut_and_whole_by_stream(server: DNSServer, upstream: Upstream) -> None:
    with closing(guest := await asker(server, GUEST)):
        cut = await guest.ask(question("www.example.org", "TXT", payload=1232))
    assert (cut.header.tc, cut.rr) == (1, [])
    reader, writer = await asyncio.open_connection(HOST, server.port(), local_addr=(GUEST, 0))
    packet = question("www.example.org", "TXT")
    writer.write(len(packet).to_bytes(2, "big") + packet)
    length = int.from_bytes(await reader.readexactly(2), "big")
    whole = DNSRecord.parse(await reader.readexactly(length))
    assert (whole.header.tc, len(whole.rr), whole.q.qtype) == (0, 15, QTYPE.TXT)
    writer.close()
    await writer.wait_closed()


async def test_forged_answers_are_passed_over(server: DNSServer, upstream: Upstream) -> None:
    def forged(answer: bytes) -> list[bytes]:
        other = bytes((answer[0] ^ 1,)) + answer[1:]
        return [b"", other, answer.replace(b"www", b"xyz"), b"\0" * 400, answer]

    upstream.twist = forged
    with closing(guest := await asker(server, GUEST)):
        assert str((await guest.ask(question("www.example.org"))).rr[0].rdata) == "192.0.2.1"


async def test_a_resolver_that_is_silent_or_gone_is_a_failure_in_time(
    server: DNSServer, upstream: Upstream
) -> None:
    upstream.silent = True
    assert server._forwarder is not None
    server._forwarder._try_s = SHORT_S
    with closing(guest := await asker(server, GUEST)):
        assert (await guest.ask(question("www.example.org"))).header.rcode == 2
        upstream.close()
        await asyncio.sleep(0)
        assert (await guest.ask(question("www.example.org"))).header.rcode == 2
        assert (await guest.ask(question("calm-otter.vm"))).header.rcode == 0


async def test_questions_under_way_are_bounded(server: DNSServer, upstream: Upstream) -> None:
    assert server._forwarder is not None
    server._forwarder.places = Places(most=100, per_source=3)
    server._forwarder._try_s = SHORT_S
    upstream.silent = True
    with closing(guest := await asker(server, GUEST)):
        for number in range(10):
            guest.send(question("www.example.org", number=number))
        answers = [DNSRecord.parse(await guest.heard.get()).header for _ in range(10)]
    assert sorted(answer.id for answer in answers) == list(range(10))
    assert {answer.rcode for answer in answers} == {2}
    assert len(upstream.asked) == 3


async def test_closing_ends_what_is_under_way(upstream: Upstream) -> None:
    upstream.silent = True
    forwarder = Forwarder(lambda: ("127.0.0.1",), port=upstream.port)
    server = DNSServer(zone(), forwarder, for_guests=True)
    await server.open(HOST, free_port())
    port = server.port()
    with closing(guest := await asker(server, GUEST)):
        guest.send(question("www.example.org"))
        reader, writer = await asyncio.open_connection(HOST, port)
        await eventually(lambda: forwarder.places.held() and server._connections.held())
        await server.close()
        assert forwarder.places.held() == 0
        assert await reader.read() == b""
        writer.close()
    again = DNSServer(zone())
    await again.open(HOST, port)
    await again.close()


def test_servers_are_the_hosts_and_never_ourselves() -> None:
    text = """# nameserver 192.0.2.9
nameserver 10.9.0.1   ; ours
nameserver 127.0.0.53
 nameserver fd00::1
nameserver nonsense
nameserver 0.0.0.0
nameserver 127.0.0.53
options edns0
nameserver 192.0.2.4
nameserver 192.0.2.5
"""
    assert read_servers(text, ourselves=("10.9.0.1",)) == ("127.0.0.53", "fd00::1", "192.0.2.4")


def test_servers_follow_the_file(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    servers = HostServers("192.0.2.1", ourselves=("10.9.0.1",), path=str(file))
    assert servers() == ("192.0.2.1",)
    file.write_text("nameserver 192.0.2.4\n")
    assert servers() == ("192.0.2.4",)
    file.write_text("nameserver 10.9.0.1\n# no other\n")
    assert servers() == ("192.0.2.1",)
    file.unlink()
    assert servers() == ("192.0.2.1",)


class NoRoutes:
    """A host without systemd-resolved."""

    async def names_routable(self) -> bool:
        return False

    async def route_names(self, link: str, *, server: str, domain: str) -> None:
        raise AssertionError("there is no resolver")

    async def names_routed(self, link: str, *, server: str, domain: str) -> bool:
        raise AssertionError("there is no resolver")

    async def unroute_names(self, link: str) -> None:
        raise AssertionError("there is no resolver")


async def test_a_port_that_is_taken_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind((HOST, free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        names = Names(Settings(dns_listen=f"{HOST}:{port}"), NoRoutes())
        await names.open()
        await names.check()
        (problem,) = names.problems()
        assert f"{HOST}:{port}" in problem
        assert f"(pid {os.getpid()}) has that port" in problem
        assert "dns_listen" in problem
        assert len(caplog.records) == 1, "told once"
    await names.check()
    assert names.problems() == ()
    names.put("1", NamedGuest("calm-otter", "172.16.0.2", nat=False))
    assert (await ask_by_tcp(HOST, port, question("calm-otter.vm"))).rr
    names.remove("1")
    assert not (await ask_by_tcp(HOST, port, question("calm-otter.vm"))).rr
    await names.close()


async def test_half_a_bind_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """TCP taken, UDP free: the next try must not find our own UDP."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind((HOST, free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        server = DNSServer(zone())
        for _ in range(2):
            with pytest.raises(OSError, match="in use"):
                await server.open(HOST, port)
        assert not server.is_open
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, port))
