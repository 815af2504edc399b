"""DNS packets: what is asked, and the replies to it. The one module that uses dnslib. Pure.

Guests are not trusted: a query is taken apart within bounds, and whatever is none is dropped unanswered, so
that two servers never answer each other and no forged packet makes us send more than it cost. What can be
understood but is not served gets an error code. Replies repeat the question as it was written (0x20).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from dnslib import CLASS, EDNS0, PTR, QTYPE, RR, SOA, A, DNSHeader, DNSLabel, DNSQuestion, DNSRecord

HEADER_BYTES = 12
MAX_QUERY = 1232
"""No honest query is longer; EDNS's usual size, which also fits one Ethernet frame."""
PLAIN_BYTES = 512
MAX_ADDITIONAL = 4
"""An OPT, a signature; dnslib spends time on each."""
IN, ANY_CLASS = int(CLASS.IN), 255
TYPE_A, TYPE_SOA, TYPE_PTR = int(QTYPE.A), int(QTYPE.SOA), int(QTYPE.PTR)
TYPE_ANY, TYPE_OPT = int(QTYPE.ANY), int(QTYPE.OPT)
_QR, _OPCODE, _TC, _RD, _CD = 0x8000, 0x7800, 0x0200, 0x0100, 0x0010
_DO = 0x8000


class RCode(IntEnum):
    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Query(NamedTuple):
    """labels: of the name, in small letters; label: as written. payload: bytes that the asker takes in one
    datagram, 0 without EDNS. fault: why it is not served whatever it asks, NOERROR for nothing."""

    id: int
    labels: tuple[bytes, ...]
    label: DNSLabel
    type: int
    klass: int
    recursion: bool = False
    checking_disabled: bool = False
    payload: int = 0
    dnssec: bool = False
    fault: RCode = RCode.NOERROR

    def datagram_limit(self) -> int:
        """Of a reply, in bytes."""
        return min(max(self.payload, PLAIN_BYTES), MAX_QUERY)


def read_query(packet: bytes) -> Query | None:
    """None for what is not to be answered: an answer, nonsense, or too much."""
    if not HEADER_BYTES <= len(packet) <= MAX_QUERY:
        return None
    flags, questions, answers, authorities, additional = (
        int.from_bytes(packet[at : at + 2], "big") for at in range(2, HEADER_BYTES, 2)
    )
    if flags & (_QR | _TC):
        return None
    number = int.from_bytes(packet[:2], "big")
    bare = Query(number, (), DNSLabel(""), 0, 0, recursion=bool(flags & _RD))
    if flags & _OPCODE:
        return bare._replace(fault=RCode.NOTIMP)
    if questions != 1 or answers or authorities or additional > MAX_ADDITIONAL:
        return bare._replace(fault=RCode.FORMERR)
    try:
        record = DNSRecord.parse(packet)
        question = record.q
        label = question.qname
        labels = tuple(bytes(part).lower() for part in label.label)
        opts = [extra for extra in record.ar if extra.rtype == TYPE_OPT]
    except Exception:  # dnslib declares no closed set of errors; anything it cannot read is no query
        return None
    if sum(len(part) + 1 for part in labels) > 254 or any(not 1 <= len(part) <= 63 for part in labels):
        return None
    query = bare._replace(
        labels=labels,
        label=label,
        type=int(question.qtype),
        klass=int(question.qclass),
        checking_disabled=bool(flags & _CD),
    )
    if not opts:
        return query
    if len(opts) > 1 or opts[0].rname.label:
        return query._replace(fault=RCode.FORMERR)
    query = query._replace(payload=max(int(opts[0].rclass), PLAIN_BYTES), dnssec=bool(opts[0].ttl & _DO))
    if opts[0].ttl >> 16 & 0xFF:
        return query._replace(fault=RCode.BADVERS)
    return query


class Record(NamedTuple):
    """One resource record of ours. data: an address, or a name."""

    type: int
    data: str
    ttl_s: int


def reply(
    query: Query,
    rcode: RCode = RCode.NOERROR,
    *,
    answers: Sequence[Record] = (),
    start_of_authority: tuple[str, int, int] | None = None,
    authoritative: bool = False,
    recursion_available: bool = False,
) -> bytes:
    """The reply's bytes. start_of_authority: (zone, serial, seconds that a "no" may be kept)."""
    header = DNSHeader(
        id=query.id,
        bitmap=0,
        qr=1,
        aa=int(authoritative),
        rd=int(query.recursion),
        ra=int(recursion_available),
        cd=int(query.checking_disabled),
        rcode=rcode & 0xF,
    )
    made = DNSRecord(header)
    if query.type:
        made.add_question(DNSQuestion(query.label, query.type, query.klass))
    for record in answers:
        data = A(record.data) if record.type == TYPE_A else PTR(record.data)
        made.add_answer(RR(query.label, record.type, IN, record.ttl_s, data))
    if start_of_authority is not None:
        zone, serial, kept_s = start_of_authority
        soa = SOA(zone, f"nobody.{zone}", (serial, 60, 60, 3600, kept_s))
        asked = query.type in (TYPE_SOA, TYPE_ANY) and query.label == zone
        section = made.add_answer if asked else made.add_auth
        section(RR(zone, TYPE_SOA, IN, kept_s, soa))
    if query.payload:
        made.add_ar(EDNS0(udp_len=MAX_QUERY, ext_rcode=rcode >> 4))
    return bytes(made.pack())


def upstream_query(query: Query, number: int) -> bytes:
    """The same question as our own: nothing else of the guest's packet travels on."""
    header = DNSHeader(id=number, bitmap=0, rd=1, cd=int(query.checking_disabled))
    made = DNSRecord(header, q=DNSQuestion(query.label, query.type, query.klass))
    if query.payload:
        made.add_ar(EDNS0(udp_len=query.datagram_limit(), flags="do" if query.dnssec else ""))
    return bytes(made.pack())


def relayed(answer: bytes, asked: bytes, query: Query) -> bytes | None:
    """An upstream's answer made ours for the guest: its number, the name as it was written.

    asked: what upstream_query made. None when it is no answer to that: another number or question.
    """
    end = HEADER_BYTES + len(question_bytes(query))
    ours = asked[HEADER_BYTES:end]
    if len(answer) < end or answer[:2] != asked[:2] or not answer[2] & 0x80 or answer[2] & 0x78:
        return None
    if answer[4:6] != b"\0\1" or answer[HEADER_BYTES:end].lower() != ours.lower():
        return None
    return query.id.to_bytes(2, "big") + answer[2:HEADER_BYTES] + ours + answer[end:]


def question_bytes(query: Query) -> bytes:
    """The question as a packet has it, uncompressed."""
    name = b"".join(bytes((len(part),)) + bytes(part) for part in query.label.label)
    return name + b"\0" + query.type.to_bytes(2, "big") + query.klass.to_bytes(2, "big")


def fitted(answer: bytes, query: Query, limit: int) -> bytes:
    """The reply, or where it is longer than `limit` its head alone, with the flag that says: ask by TCP."""
    if len(answer) <= limit:
        return answer
    flags = int.from_bytes(answer[2:4], "big") | _TC
    head = answer[:2] + flags.to_bytes(2, "big") + b"\0\1\0\0\0\0" + (b"\0\1" if query.payload else b"\0\0")
    opt = b"\0" + TYPE_OPT.to_bytes(2, "big") + MAX_QUERY.to_bytes(2, "big") + b"\0\0\0\0\0\0"
    return head + question_bytes(query) + (opt if query.payload else b"")
