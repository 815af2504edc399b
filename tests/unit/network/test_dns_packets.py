"""The codec: what counts as a question, and that replies repeat it as it was written."""

from __future__ import annotations

import pytest
from dnslib import EDNS0, QTYPE, RR, A, DNSHeader, DNSQuestion, DNSRecord

from banger.network.dnspacket import (
    MAX_QUERY,
    Query,
    RCode,
    Record,
    fitted,
    question_bytes,
    read_query,
    relayed,
    reply,
    upstream_query,
)
from tests.unit.network.dnsasks import question


def asked(packet: bytes) -> Query:
    query = read_query(packet)
    assert query is not None
    return query


def test_a_question_is_understood() -> None:
    query = asked(question("CaLm-Otter.VM", "AAAA", payload=4096, number=77))
    assert query.labels == (b"calm-otter", b"vm")
    assert (query.id, query.type, query.klass, query.fault) == (77, QTYPE.AAAA, 1, RCode.NOERROR)
    assert query.payload == 4096
    assert query.datagram_limit() == MAX_QUERY
    assert query.recursion
    assert asked(question("a.vm")).datagram_limit() == 512
    assert asked(question("a.vm", payload=20)).datagram_limit() == 512


def test_a_reply_repeats_name_number_and_case() -> None:
    packet = question("CaLm-Otter.vM", payload=1232, number=77)
    made = reply(asked(packet), answers=(Record(1, "172.16.0.2", 5),), authoritative=True)
    assert made[12 : 12 + len(question_bytes(asked(packet)))] == question_bytes(asked(packet))
    assert b"\x0aCaLm-Otter\x02vM\x00" in made
    answer = DNSRecord.parse(made)
    assert (answer.header.id, answer.header.qr, answer.header.aa, answer.header.rd) == (77, 1, 1, 1)
    assert [(str(record.rname), str(record.rdata), record.ttl) for record in answer.rr] == [
        ("CaLm-Otter.vM.", "172.16.0.2", 5)
    ]
    assert answer.ar[0].rtype == QTYPE.OPT
    assert answer.ar[0].rclass == MAX_QUERY


def test_without_edns_there_is_none_in_the_reply() -> None:
    assert DNSRecord.parse(reply(asked(question("a.vm")))).ar == []


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0" * 11,
        question("a.vm")[:-1],
        question("a.vm") + b"\0" * MAX_QUERY,
        bytes(DNSRecord.question("a.vm").reply().pack()),  # an answer: two servers never talk to each other
        question("a.vm")[:2] + b"\x03\x00" + question("a.vm")[4:],  # cut off by its sender
        question("a.vm")[:12] + b"\xc0\x0c\0\1\0\1",  # a name that points at itself
        question("a.vm")[:12] + b"\x7f" + b"a" * 200,
        question("a.vm")[:12] + b"\x80a\0\0\1\0\1",
    ],
    ids=["nothing", "short", "cut", "long", "answer", "truncated", "loop", "past the end", "bad label"],
)
def test_what_is_no_question_is_dropped(packet: bytes) -> None:
    assert read_query(packet) is None


def with_header(packet: bytes, at: int, value: int) -> bytes:
    return packet[:at] + value.to_bytes(2, "big") + packet[at + 2 :]


def test_what_is_understood_and_not_served_gets_a_code() -> None:
    plain = question("a.vm")
    two = DNSRecord(DNSHeader(id=1, rd=1))
    two.add_question(DNSQuestion("a.vm"), DNSQuestion("b.vm"))
    filled = DNSRecord.question("a.vm")
    filled.add_answer(RR("a.vm", rdata=A("192.0.2.1")))
    opts = DNSRecord.question("a.vm")
    opts.add_ar(EDNS0(udp_len=1232))
    opts.add_ar(EDNS0(udp_len=1232))
    newer = DNSRecord.question("a.vm")
    newer.add_ar(EDNS0(udp_len=1232, version=1))
    for packet, fault in (
        (with_header(plain, 2, 0x2800), RCode.NOTIMP),
        (with_header(plain, 4, 0), RCode.FORMERR),
        (bytes(two.pack()), RCode.FORMERR),
        (bytes(filled.pack()), RCode.FORMERR),
        (with_header(plain, 10, 50), RCode.FORMERR),
        (bytes(opts.pack()), RCode.FORMERR),
        (bytes(newer.pack()), RCode.BADVERS),
    ):
        query = asked(packet)
        assert query.fault is fault
        answer = DNSRecord.parse(reply(query, query.fault))
        assert answer.header.qr == 1
        assert answer.header.rcode == fault & 0xF
        assert len(reply(query, query.fault)) <= len(packet) + 11


def test_a_reply_too_long_for_a_datagram_says_so() -> None:
    long = DNSRecord.parse(question("a.example.org", payload=600)).reply()
    for number in range(60):
        long.add_answer(RR("a.example.org", rdata=A(f"192.0.2.{number}")))
    query = asked(question("a.example.org", payload=600))
    whole = bytes(long.pack())
    assert fitted(whole, query, len(whole)) == whole
    cut = fitted(whole, query, query.datagram_limit())
    answer = DNSRecord.parse(cut)
    assert len(cut) <= 512
    assert answer.header.tc == 1
    assert str(answer.q.qname) == "a.example.org."
    assert answer.rr == []
    assert len(answer.ar) == 1


def test_nothing_of_a_guests_packet_travels_on_but_its_question() -> None:
    packet = DNSRecord.question("Www.Example.org", "TXT")
    packet.add_ar(EDNS0(udp_len=4096, flags="do", opts=[]))
    packet.add_ar(RR("secret.example.org", rdata=A("192.0.2.7")))
    sent = upstream_query(asked(bytes(packet.pack())), 99)
    assert b"secret" not in sent
    again = asked(sent)
    assert (again.id, again.type, again.payload, again.dnssec) == (99, QTYPE.TXT, MAX_QUERY, True)
    assert question_bytes(again) == question_bytes(asked(bytes(packet.pack())))


def test_an_upstreams_answer_counts_only_for_its_question() -> None:
    query = asked(question("WwW.example.org", number=7))
    sent = upstream_query(query, 99)
    answer = DNSRecord.parse(sent).reply()
    answer.add_answer(RR("www.example.org", rdata=A("192.0.2.1")))
    packed = bytes(answer.pack())
    ours = relayed(packed.replace(b"WwW", b"www", 1), sent, query)
    assert ours is not None
    assert DNSRecord.parse(ours).header.id == 7
    assert b"\x03WwW\x07example" in ours
    for wrong in (
        (100).to_bytes(2, "big") + packed[2:],
        packed.replace(b"WwW", b"abc", 1),
        sent,  # a question
        with_header(packed, 4, 2),
        packed[:20],
        b"",
    ):
        assert relayed(wrong, sent, query) is None
