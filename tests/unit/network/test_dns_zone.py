"""What is answered with authority, what is refused, and for whom the rest is asked elsewhere."""

from __future__ import annotations

import pytest
from dnslib import CLASS, QTYPE, DNSRecord

from banger.network.dnslimit import Buckets, Places
from banger.network.dnspacket import read_query
from banger.network.dnszone import ABSENT_TTL_S, TTL_S, NamedGuest, Verdict, Zone
from tests.unit.network.dnsasks import question

OTTER = NamedGuest("calm-otter", "10.9.0.2", nat=False)
FOX = NamedGuest("red-fox", "10.9.0.3", nat=True)


@pytest.fixture
def zone() -> Zone:
    made = Zone("10.9.0.1", 24)
    made.put("1", OTTER)
    made.put("2", FOX)
    return made


def ask(zone: Zone, name: str, kind: str = "A", *, source: str = "", guests: bool = False) -> DNSRecord:
    query = read_query(question(name, kind))
    assert query is not None
    answer = zone.answer(query, source=source, for_guests=guests)
    assert isinstance(answer, bytes)
    return DNSRecord.parse(answer)


def code(answer: DNSRecord) -> str:
    return {0: "NOERROR", 3: "NXDOMAIN", 5: "REFUSED"}[answer.header.rcode]


def test_a_running_guest_has_an_address(zone: Zone) -> None:
    for name in ("calm-otter.vm", "CALM-otter.VM"):
        answer = ask(zone, name)
        assert (code(answer), answer.header.aa) == ("NOERROR", 1)
        assert [(str(record.rdata), record.ttl) for record in answer.rr] == [("10.9.0.2", TTL_S)]
    assert len(ask(zone, "calm-otter.vm", "ANY").rr) == 1


@pytest.mark.parametrize("kind", ["AAAA", "TXT", "MX", "SOA", "HTTPS"])
def test_a_name_that_is_there_has_no_other_records(zone: Zone, kind: str) -> None:
    """NODATA: an NXDOMAIN for AAAA would make resolvers forget the address."""
    answer = ask(zone, "calm-otter.vm", kind)
    assert (code(answer), answer.rr) == ("NOERROR", [])
    assert [(str(record.rname), record.rtype, record.ttl) for record in answer.auth] == [
        ("vm.", QTYPE.SOA, ABSENT_TTL_S)
    ]


@pytest.mark.parametrize("name", ["nobody.vm", "www.calm-otter.vm", "a.b.c.vm", "xn--4ca.vm"])
def test_other_names_of_the_zone_do_not_exist(zone: Zone, name: str) -> None:
    answer = ask(zone, name)
    assert code(answer) == "NXDOMAIN"
    assert answer.auth[0].rtype == QTYPE.SOA
    assert answer.header.aa == 1


def test_the_zone_itself_is_there(zone: Zone) -> None:
    assert code(ask(zone, "vm")) == "NOERROR"
    assert [record.rtype for record in ask(zone, "vm", "SOA").rr] == [QTYPE.SOA]


def test_addresses_have_names(zone: Zone) -> None:
    answer = ask(zone, "3.0.9.10.in-addr.arpa", "PTR")
    assert [str(record.rdata) for record in answer.rr] == ["red-fox.vm."]
    assert code(ask(zone, "3.0.9.10.in-addr.arpa", "TXT")) == "NOERROR"
    assert code(ask(zone, "77.0.9.10.in-addr.arpa", "PTR")) == "NXDOMAIN"
    for other in ("2.0.0.127", "2.1.9.10", "03.0.9.10", "3.0.9", "x.0.9.10", "1.3.0.9.10"):
        assert code(ask(zone, f"{other}.in-addr.arpa", "PTR")) == "REFUSED"


def test_foreign_names_are_refused_but_for_guests_with_nat(zone: Zone) -> None:
    query = read_query(question("example.org"))
    assert query is not None
    assert zone.answer(query, source=FOX.address, for_guests=True) is Verdict.FORWARD
    for source, guests in (
        (FOX.address, False),
        (OTTER.address, True),
        ("10.9.0.1", True),
        ("10.9.0.9", True),
    ):
        assert code(ask(zone, "example.org", source=source, guests=guests)) == "REFUSED"
    assert ask(zone, "nobody.vm", source=FOX.address, guests=True).header.ra == 1
    assert ask(zone, "nobody.vm", source=OTTER.address, guests=True).header.ra == 0


def test_other_classes_are_refused(zone: Zone) -> None:
    asked = DNSRecord.question("version.bind", "TXT")
    asked.q.qclass = CLASS.CH
    query = read_query(bytes(asked.pack()))
    assert query is not None
    answer = zone.answer(query, source=FOX.address, for_guests=True)
    assert isinstance(answer, bytes)
    assert code(DNSRecord.parse(answer)) == "REFUSED"


def test_records_come_and_go(zone: Zone) -> None:
    before = ask(zone, "nobody.vm").auth[0].rdata.times[0]
    zone.remove("1")
    zone.remove("1")
    assert code(ask(zone, "calm-otter.vm")) == "NXDOMAIN"
    assert code(ask(zone, "2.0.9.10.in-addr.arpa", "PTR")) == "NXDOMAIN"
    assert ask(zone, "nobody.vm").auth[0].rdata.times[0] > before
    zone.put("3", OTTER)  # the next VM has its name and address
    zone.remove("1")
    assert code(ask(zone, "calm-otter.vm")) == "NOERROR"
    zone.put("2", FOX._replace(nat=False))
    assert code(ask(zone, "example.org", source=FOX.address, guests=True)) == "REFUSED"
    assert {guest.name for guest in zone.guests()} == {"calm-otter", "red-fox"}


def test_one_source_that_asks_too_much_is_its_own_trouble() -> None:
    now = [0.0]
    buckets = Buckets(per_second=10, burst=20, clock=lambda: now[0], most=3)
    assert [buckets.take("a") for _ in range(25)] == [True] * 20 + [False] * 5
    assert buckets.take("b")
    now[0] += 0.5
    assert [buckets.take("a") for _ in range(7)] == [True] * 5 + [False] * 2
    now[0] += 3600
    assert sum(buckets.take("a") for _ in range(50)) == 20
    for source in "cdefg":
        buckets.take(source)
    assert len(buckets) == 3


def test_a_few_who_want_every_place_leave_some_to_a_newcomer() -> None:
    places = Places(most=64, per_source=16)
    taken = {source: sum(places.reserve(source) for _ in range(100)) for source in "abcdefgh"}
    assert taken["a"] == 16
    assert all(count >= 2 for count in taken.values())
    assert places.held() == sum(taken.values()) <= 64
    for number in range(100):
        places.reserve(f"late {number}")
    assert places.held() == 64
    for _ in range(taken["a"]):
        places.release("a")
    assert places.held("a") == 0
    assert places.reserve("newcomer")
