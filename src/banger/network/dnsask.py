"""A DNS question as a guest's libc asks it, and the answer to it, for `net why`. Pure.

The answer is whatever a stranger's server said: only what belongs to the question is read, within bounds.
"""

from __future__ import annotations

import secrets
from ipaddress import IPv4Address

from dnslib import QTYPE, DNSHeader, DNSQuestion, DNSRecord

MOST_ANSWER = 4096
MOST_RECORDS = 32
MOST_ADDRESSES = 8


def question(name: str) -> bytes:
    """For an IPv4 address, with recursion. ValueError for what is no name."""
    try:
        header = DNSHeader(id=secrets.randbits(16), rd=1)
        return bytes(DNSRecord(header, q=DNSQuestion(name.rstrip("."), QTYPE.A)).pack())
    except Exception as error:  # dnslib declares no closed set of errors
        raise ValueError(f"{name[:80]!a} cannot be asked for") from error


def read_answer(packet: bytes, asked: bytes) -> tuple[int, tuple[str, ...]]:
    """(rcode, addresses); (-1, ()) for what is no answer to that question."""
    if len(packet) < 12 or len(packet) > MOST_ANSWER or packet[:2] != asked[:2] or not packet[2] & 0x80:
        return -1, ()
    rcode = packet[3] & 0x0F
    if int.from_bytes(packet[6:8], "big") > MOST_RECORDS:
        return -1, ()
    try:
        records = DNSRecord.parse(packet).rr
        found = [str(IPv4Address(str(record.rdata))) for record in records if record.rtype == QTYPE.A]
    except Exception:
        # cut off, or broken: the code in its head still says something, but for success
        return (rcode, ()) if rcode else (-1, ())
    return rcode, tuple(found[:MOST_ADDRESSES])
