"""Routing of `.vm` through the host's resolver: set once, seen to be there, set again, taken back."""

from __future__ import annotations

import pytest

from banger.errors import BangerError, ErrorCode
from banger.network.resolver import ResolverRouting
from banger.system.resolved import link_values

pytestmark = pytest.mark.anyio
SERVER = "127.0.0.1:42069"


class FakeResolved:
    """systemd-resolved's memory of one host's links. `broken`: what it answers instead."""

    def __init__(self) -> None:
        self.runs = True
        self.links: dict[str, tuple[str, str]] = {}
        self.times_set = 0
        self.broken: BangerError | None = None

    async def names_routable(self) -> bool:
        return self.runs

    async def route_names(self, link: str, *, server: str, domain: str) -> None:
        if self.broken:
            raise self.broken
        self.times_set += 1
        self.links[link] = (server, domain)

    async def names_routed(self, link: str, *, server: str, domain: str) -> bool:
        return self.links.get(link) == (server, domain)

    async def unroute_names(self, link: str) -> None:
        if self.broken:
            raise self.broken
        self.links.pop(link, None)


@pytest.fixture
def resolved() -> FakeResolved:
    return FakeResolved()


@pytest.fixture
def routing(resolved: FakeResolved) -> ResolverRouting:
    return ResolverRouting(resolved, "br-fc")


async def test_it_is_set_once_and_again_when_lost(
    routing: ResolverRouting, resolved: FakeResolved, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        await routing.keep(SERVER)
    assert resolved.links == {"br-fc": (SERVER, "vm")}
    assert resolved.times_set == 1
    assert not caplog.records
    resolved.links.clear()
    await routing.keep(SERVER)
    assert resolved.times_set == 2
    assert "has lost .vm on br-fc" in caplog.text
    await routing.keep("172.16.0.1")  # dns_listen has become busy: the bridge's own is left
    assert resolved.links == {"br-fc": ("172.16.0.1", "vm")}
    await routing.undo()
    assert resolved.links == {}


async def test_what_an_earlier_daemon_set_is_kept_and_taken_back(
    routing: ResolverRouting, resolved: FakeResolved
) -> None:
    resolved.links["br-fc"] = (SERVER, "vm")
    await routing.keep(SERVER)
    assert resolved.times_set == 0
    await ResolverRouting(resolved, "br-fc").undo()
    assert resolved.links == {}


async def test_a_host_without_it_is_left_alone(routing: ResolverRouting, resolved: FakeResolved) -> None:
    resolved.runs = False
    resolved.broken = BangerError(ErrorCode.COMMAND_FAILED, "asked all the same")
    await routing.keep(SERVER)
    await routing.undo()
    assert routing.problem == ""
    assert resolved.links == {}


async def test_a_refusal_is_told_once_and_forgotten_when_it_works(
    routing: ResolverRouting, resolved: FakeResolved, caplog: pytest.LogCaptureFixture
) -> None:
    resolved.broken = BangerError(ErrorCode.COMMAND_FAILED, "resolvectl: access denied")
    for _ in range(3):
        await routing.keep(SERVER)
    assert "access denied" in routing.problem
    assert caplog.text.count("access denied") == 1
    resolved.broken = None
    await routing.keep(SERVER)
    assert routing.problem == ""


@pytest.mark.parametrize(
    ("said", "values"),
    [
        (b"Link 7 (br-fc): 127.0.0.1:42069\n", ("127.0.0.1:42069",)),
        (b"Link 7 (br-fc): 192.0.2.1 192.0.2.2\n", ("192.0.2.1", "192.0.2.2")),
        (b"Link 7 (br-fc):\n", ()),
        (b"Global: 192.0.2.1\n", ()),
        (b"Link 7 (br-fc): a\nLink 8 (x): b\n", ()),
        (b"\xff\xfe", ()),
        (b"", ()),
    ],
)
def test_what_resolvectl_says(said: bytes, values: tuple[str, ...]) -> None:
    assert link_values(said) == values
