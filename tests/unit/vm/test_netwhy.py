"""What `net why` takes for a place, and the names that it asks for."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.config.settings import Settings
from banger.errors import BangerError, ErrorCode
from banger.helper.interface import Helper
from banger.model.netwhy import Flow, GuestNetwork, Outcome, Protocol
from banger.model.records import VMRecord, VMRuntime, VMSpec, now
from banger.model.states import VMState
from banger.network.dnsask import question
from banger.vm.netwhy import MOST_CANDIDATES, Gatherer, candidates, check_host

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


async def test_who_did_not_answer_in_time_is_known_although_time_ran_out() -> None:
    record = VMRecord(
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
    gatherer = Gatherer(cast(Helper, Untraced()), Settings(), attempt=attempt, look=look)
    facts = await gatherer.facts(record, "example.org", port=0, protocol=Protocol.ICMP)
    assert facts.target == ""
    assert [one.server for one in facts.asked] == ["192.0.2.1", "192.0.2.2"]
