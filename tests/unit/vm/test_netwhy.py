"""What `net why` takes for a place, and the names that it asks for."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.config.settings import Settings
from banger.errors import BangerError, ErrorCode
from banger.helper.interface import Helper
from banger.model.netwhy import Flow, GuestNetwork, Outcome, Probe, Protocol, TraceEvent
from banger.model.records import VMRecord, VMRuntime, VMSpec, now
from banger.model.states import VMState
from banger.network.dnsask import question
from banger.vm.netwhy import MOST_CANDIDATES, TRIES, Gatherer, candidates, check_host

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "host", ["web", "web.vm", "example.org.", "192.0.2.1", "_srv.example.org", "xn--a.b-c"]
)
def test_places(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("::1", "no IPv6"),
        ("[2001:db8::1]", "no IPv6"),
        ("fe80::1%eth0", "no IPv6"),
        ("", "no name"),
        ("a..b", "no name"),
        ("-x", "no name"),
        ("fe80::1%\x1b[0m", "no IPv6"),
        ("192.0.2.256", "no name"),
        ("[192.0.2.1]", "no name"),
        ("192.0.2.1%eth0", "no name"),
        ("192.0.2.1.", "no name"),
        ("a" * 64, "no name"),
        ("a." * 127 + "aa", "no name"),
        ("a b", "no name"),
        ("$(reboot)", "no name"),
        ("caf\u00e9.example", "no name"),
        ("web\n", "no name"),
    ],
)
def test_no_places(host: str, says: str) -> None:
    with pytest.raises(BangerError, match=says) as caught:
        check_host(host)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.brief.isprintable()


def test_names_are_tried_as_libc_does() -> None:
    assert candidates("web", ["vm", "lan"]) == ["web.vm", "web.lan", "web"]
    assert candidates("example.org", ["vm"]) == ["example.org", "example.org.vm"]
    assert candidates("example.org.", ["vm"]) == ["example.org"]
    assert len(candidates("web", ["a", "b", "c", "d", "e", "f"])) == MOST_CANDIDATES


@pytest.mark.parametrize("domain", ["a" * 64, "a..b", "\ufffd", "-", ".".join(["a" * 62] * 4)])
def test_a_search_domain_that_is_none_is_not_asked_for(domain: str) -> None:
    assert candidates("web", [domain, "vm"]) == ["web.vm", "web"]


@given(st.from_regex(r"[a-zA-Z0-9_.-]{0,70}\.?", fullmatch=True), st.lists(st.text(max_size=253), max_size=6))
def test_what_is_taken_can_be_asked_for(host: str, search: list[str]) -> None:
    try:
        check_host(host)
    except BangerError:
        return
    for name in candidates(host, search):
        question(name)


class Untraced:
    """A host whose kernel shows nothing."""

    async def begin_trace(self, _flow: Flow) -> str:
        raise BangerError(ErrorCode.HOST_UNSUITABLE, "no nft")

    async def forwarding(self) -> bool:
        return True


async def look(vm_dir: str, *, timeout_s: float) -> GuestNetwork:
    return GuestNetwork(nameservers=("192.0.2.1", "192.0.2.2", "192.0.2.3"))


async def attempt(vm_dir: str, flow: Flow, *, data: bytes, timeout_s: float) -> Outcome:
    if flow.target == "192.0.2.3":
        raise TimeoutError  # as when the time for all questions is up
    return Outcome(error="ETIMEDOUT")


def record() -> VMRecord:
    return VMRecord(
        id="a" * 64,
        name="web",
        image_id="b" * 64,
        state=VMState.RUNNING,
        created_at=now(),
        updated_at=now(),
        last_touched_at=now(),
        spec=VMSpec(),
        runtime=VMRuntime(guest_ip="172.16.0.2", vm_dir="/nonexistent", tap_device="tap-fc-none"),
    )


async def test_who_did_not_answer_in_time_is_known_although_time_ran_out() -> None:
    gatherer = Gatherer(cast(Helper, Untraced()), Settings(), attempt=attempt, look=look)
    facts = await gatherer.facts(record(), "example.org", port=0, protocol=Protocol.ICMP)
    assert facts.target == ""
    assert [one.server for one in facts.asked] == ["192.0.2.1", "192.0.2.2"]


SEEN = TraceEvent(family="bridge", table="t", chain="first", verdict="accept")


class Street:
    """A guest's attempts and what the kernel shows of each, as `says` has it, the last for good."""

    def __init__(self, *says: tuple[str, tuple[TraceEvent, ...]]) -> None:
        self.says = says
        self.sources: list[int] = []
        self.running = ""

    @property
    def now(self) -> tuple[str, tuple[TraceEvent, ...]]:
        return self.says[min(len(self.sources), len(self.says)) - 1]

    async def attempt(self, vm_dir: str, flow: Flow, *, data: bytes, timeout_s: float) -> Outcome:
        assert self.running
        self.sources.append(flow.source)
        return Outcome(error=self.now[0])

    async def begin_trace(self, _flow: Flow) -> str:
        assert not self.running
        self.running = "token"
        return self.running

    async def end_trace(self, token: str) -> tuple[TraceEvent, ...]:
        assert token == self.running
        self.running = ""
        return self.now[1]

    async def forwarding(self) -> bool:
        return True

    async def probe(self) -> Probe:
        gatherer = Gatherer(cast(Helper, self), Settings(), attempt=self.attempt, look=look)
        facts = await gatherer.facts(record(), "172.16.0.3", port=80, protocol=Protocol.TCP)
        assert facts.probe is not None
        assert not self.running
        return facts.probe


async def test_what_an_earlier_question_for_the_neighbour_came_to_is_not_the_answer() -> None:
    street = Street(("EHOSTUNREACH", ()), ("", (SEEN,)))
    probe = await street.probe()
    assert (probe.outcome.error, probe.trace) == ("", (SEEN,))
    assert len(street.sources) == 2


@pytest.mark.parametrize(
    ("error", "trace", "tries"),
    [
        ("EHOSTUNREACH", (), 2),  # it is so
        ("EHOSTUNREACH", (SEEN,), 1),  # asked for in this attempt
        ("ENETUNREACH", (), 1),
        ("ETIMEDOUT", (), 1),
        ("EADDRINUSE", (), TRIES),
    ],
)
async def test_what_is_tried_again(error: str, trace: tuple[TraceEvent, ...], tries: int) -> None:
    street = Street((error, trace))
    probe = await street.probe()
    assert (probe.outcome.error, probe.trace) == (error, trace)
    assert len(street.sources) == tries
