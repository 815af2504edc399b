"""The name server's readers against any bytes and against packets that are almost right.

Nothing comes out of them but an answer or nothing; an answer is one, fits, costs its asker as much as us, and
nothing of a packet but its question goes on to an upstream.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest
from dnslib import EDNS0, RR, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from banger.network.dnsforward import MOST_SERVERS, read_servers
from banger.network.dnspacket import (
    MAX_QUERY,
    PLAIN_BYTES,
    fitted,
    question_bytes,
    read_query,
    relayed,
    upstream_query,
)
from banger.network.dnsserver import DNSServer
from banger.network.dnszone import NamedGuest, Verdict, Zone
from tests.fuzz.test_host_side import EXAMPLES
from tests.unit.network.dnsasks import free_port

GUEST = NamedGuest("calm-otter", "10.9.0.2", nat=True)


def packed(name: str, kind: str = "A", *, edns: int = 0, additional: int = 0) -> bytes:
    record = DNSRecord.question(name, kind)
    if edns:
        record.add_ar(EDNS0(udp_len=edns, flags="do"))
    for _ in range(additional):
        record.add_ar(RR("additional.example.org", rdata=A("192.0.2.1")))
    return bytes(record.pack())


SEEDS = (
    packed("calm-otter.vm"),
    packed("CALM-OTTER.vm", "AAAA", edns=4096),
    packed("nobody.vm", "ANY", edns=512, additional=2),
    packed("2.0.9.10.in-addr.arpa", "PTR"),
    packed("www.example.org", "TXT", edns=1232),
    packed("a." * 120 + "vm", "SOA"),
    packed("a" * 63 + ".vm"),
    bytes(DNSRecord.question("calm-otter.vm").reply().pack()),
)
PIECES = (b"\xc0\x0c", b"\xc0\x00", b"\xff\xff", b"\0\0", b"\x3f", b"\x40", b"\x80", b"\0\x29", b"\0\1\0\1")


def changed(data: bytes, changes: Sequence[tuple[int, bytes]], cut: int) -> bytes:
    made = bytearray(data)
    for at, piece in changes:
        at %= len(made)
        made[at : at + len(piece)] = piece
    return bytes(made[: max(0, len(made) - cut)])


pieces = st.one_of(st.sampled_from(PIECES), st.binary(min_size=1, max_size=6))
almost = st.builds(
    changed,
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 400), pieces), max_size=5),
    st.one_of(st.just(0), st.integers(0, 40)),
)
header = st.sampled_from(
    [b"\0\1\1\0\0\1\0\0\0\0\0\0", b"\0\1\1\0\0\1\0\0\0\0\0\1", b"\0\1\1\0\0\1\0\0\0\0\0\4"]
)
headed = st.tuples(header, st.binary(max_size=1300)).map(b"".join)
packets = st.one_of(almost, almost, headed, st.binary(max_size=1300))


def zone() -> Zone:
    made = Zone("10.9.0.1", 24)
    made.put("1", GUEST)
    return made


@EXAMPLES
@given(packets)
def test_questions(packet: bytes) -> None:
    query = read_query(packet)
    if query is None:
        return
    assert not packet[2] & 0x80, "an answer was answered"
    assert len(packet) <= MAX_QUERY
    for source in ("", GUEST.address):
        answer = zone().answer(query, source=source, for_guests=bool(source))
        if isinstance(answer, Verdict):
            assert query.labels[-1:] != (b"vm",)
            assert source
            continue
        sent = fitted(answer, query, query.datagram_limit())
        assert PLAIN_BYTES <= query.datagram_limit() <= MAX_QUERY
        assert len(sent) <= min(query.datagram_limit(), len(packet) + 120 + len(packet))
        assert sent[:2] == packet[:2]
        assert sent[2] & 0x80
        DNSRecord.parse(sent)
        assert read_query(sent) is None


@EXAMPLES
@given(packets, st.integers(0, 65535))
def test_what_goes_on_to_an_upstream(packet: bytes, number: int) -> None:
    query = read_query(packet)
    if query is None or query.fault:
        return
    sent = upstream_query(query, number)
    assert sent[:2] == number.to_bytes(2, "big")
    assert sent[12:].startswith(question_bytes(query))
    assert len(sent) <= 12 + len(question_bytes(query)) + 11
    again = read_query(sent)
    assert again is not None
    assert (again.labels, again.type, again.klass) == (query.labels, query.type, query.klass)


@EXAMPLES
@given(st.sampled_from(SEEDS[:-1]), packets, st.lists(st.tuples(st.integers(0, 400), pieces), max_size=4))
def test_answers_of_an_upstream(seed: bytes, noise: bytes, changes: list[tuple[int, bytes]]) -> None:
    query = read_query(seed)
    assert query is not None
    sent = upstream_query(query, 99)
    good = bytes(DNSRecord.parse(sent).reply().pack())
    for answer in (noise, changed(good, changes, 0), sent[:2] + noise[2:]):
        ours = relayed(answer, sent, query)
        if ours is not None:
            assert ours[:2] == query.id.to_bytes(2, "big")
            assert ours[12:].startswith(question_bytes(query))
            assert len(ours) == len(answer)
            assert len(fitted(ours, query, query.datagram_limit())) <= query.datagram_limit()


@EXAMPLES
@given(st.one_of(st.text(max_size=400), st.binary(max_size=400).map(lambda data: data.decode("latin-1"))))
def test_resolv_conf(text: str) -> None:
    for server in read_servers(f"nameserver 10.9.0.1\n{text}", ourselves=("10.9.0.1",)):
        assert server != "10.9.0.1"
    assert len(read_servers(f"nameserver 192.0.2.1\n{text}\n" * 3)) <= MOST_SERVERS


@pytest.mark.anyio
async def test_a_server_that_heard_it_all_goes_on(anyio_backend: str) -> None:
    """Every seed with each of its bytes changed to four others, as fast as one socket takes them."""
    server = DNSServer(zone())
    await server.open("127.0.0.1", free_port())
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.bind(("127.0.0.1", 0))
            sender = asker.getsockname()
            for seed in SEEDS:
                for at in range(len(seed)):
                    for value in (0, 0xC0, 0xFF, seed[at] ^ 1):
                        server._take_datagram(seed[:at] + bytes((value,)) + seed[at + 1 :], sender)
            asker.setblocking(False)
            heard = []
            while True:
                try:
                    heard.append(asker.recv(2048))
                except BlockingIOError:
                    break
        assert heard
        assert all(packet[2] & 0x80 for packet in heard)
        assert server.is_open
    finally:
        await server.close()
