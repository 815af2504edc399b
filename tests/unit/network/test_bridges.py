"""Which bridge an address belongs on: whole networks, cut into blocks, whatever their size."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.network.addresses import bridge_network
from banger.network.bridges import GUESTS_PER_BRIDGE, Bridges

PREFIXES = (8, 16, 22, 24, 29, 30)


def bridges(prefix: int, *, address: str = "10.9.0.1", guests: int = GUESTS_PER_BRIDGE) -> Bridges:
    return Bridges(name="br-fc", address=address, prefix=prefix, guests=guests)


@pytest.mark.parametrize("prefix", [24, 29, 30])
def test_a_network_that_one_bridge_holds_has_one(prefix: int) -> None:
    made = bridges(prefix)
    assert not made.several()
    assert made.of("10.9.0.2") == "br-fc"
    assert made.of("") == "br-fc"
    assert made.further(["10.9.0.2", "10.9.0.3"]) == ()
    assert (made.prefix_of("br-fc"), made.routes("br-fc")) == (prefix, ())
    assert not made.own("br-fc-1")


def test_behind_a_thousand_addresses_comes_another() -> None:
    made = bridges(16)
    assert made.of("10.9.3.231") == "br-fc"
    assert made.of("10.9.3.232") == "br-fc-1"
    assert made.of("10.9.255.254") == "br-fc-65"
    assert made.further(["10.9.255.254", "10.9.0.2", "10.9.3.232", "10.9.3.233"]) == ("br-fc-1", "br-fc-65")
    assert made.prefix_of("br-fc-1") == 32
    assert (made.own("br-fc-65"), made.own("br-fc-66")) == (True, False)
    for name in ("br-fc-0", "br-fc-01", "br-fc-", "br-fd-1", "br-fc-1-1", "br-fc-99999"):
        assert not made.own(name)


@pytest.mark.parametrize(("prefix", "idle"), [(24, 256), (22, 23), (8, 23)])
def test_idle_taps_leave_the_ports_of_a_full_block(prefix: int, idle: int) -> None:
    assert bridges(prefix).idle(256) == idle
    assert bridges(prefix).idle(4) == 4


def test_the_last_of_the_largest_network_has_a_name_a_link_may_have() -> None:
    made = Bridges(name="br-0123456789ab", address="10.9.0.1", prefix=8)
    last = made.of("10.255.255.254")
    assert last == "br-012345-16777"
    assert made.own(last)
    assert len(made.routes(last)) <= 64


def test_the_bridges_address_may_lie_in_any_block() -> None:
    made = bridges(22, address="10.9.3.254", guests=300)
    assert made.of("10.9.0.1") == "br-fc"
    assert made.of("10.9.3.253") == "br-fc-3"


@given(st.sampled_from(PREFIXES), st.integers(2, 1000), st.data())
def test_an_address_is_routed_to_its_bridge_and_to_no_other(
    prefix: int, guests: int, data: st.DataObject
) -> None:
    made = bridges(prefix, guests=guests)
    network = bridge_network(made.address, prefix)
    most = min(network.num_addresses, 5 * guests)
    number = data.draw(st.integers(1, most - 2 if most > 2 else 1))
    guest = network[number]
    own = made.of(str(guest))
    assert made.own(own)
    others = {made.of(str(network[min(n * guests, network.num_addresses - 1)])) for n in range(6)} - {
        own,
        "br-fc",
    }
    assert own == "br-fc" or any(guest in ipaddress.IPv4Network(route) for route in made.routes(own))
    for other in others:
        assert not any(guest in ipaddress.IPv4Network(route) for route in made.routes(other))
    for route in made.routes(own):
        assert ipaddress.IPv4Network(route).subnet_of(network)
