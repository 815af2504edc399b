"""Guests' addresses: lowest free, never the bridge's, a clear end."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.network.addresses import bridge_network, lowest_free, mac_of


def test_the_first_address_is_the_one_behind_the_bridge() -> None:
    assert lowest_free("172.16.0.1", 24, used=[]) == "172.16.0.2"
    assert lowest_free("172.16.0.1", 24, used=["172.16.0.2", ""]) == "172.16.0.3"
    assert lowest_free("172.16.0.2", 24, used=[]) == "172.16.0.1"


@given(st.integers(8, 30), st.sets(st.integers(0, 300), max_size=200))
def test_an_address_is_inside_free_and_the_lowest(prefix: int, taken: set[int]) -> None:
    network = bridge_network("10.9.0.1", prefix)
    base = int(network.network_address)
    used = {str(ipaddress.IPv4Address(base + n)) for n in taken if n < network.num_addresses}
    unusable = {*used, "10.9.0.1", str(network.network_address), str(network.broadcast_address)}
    if len(unusable) == network.num_addresses:
        with pytest.raises(BangerError):
            lowest_free("10.9.0.1", prefix, used=used)
        return
    address = ipaddress.IPv4Address(lowest_free("10.9.0.1", prefix, used=used))
    assert address in network
    assert address not in (network.network_address, network.broadcast_address)
    assert str(address) not in {*used, "10.9.0.1"}
    below = [ipaddress.IPv4Address(n) for n in range(base + 1, int(address))]
    assert all(str(lower) in {*used, "10.9.0.1"} for lower in below)


def test_a_full_network_says_so() -> None:
    with pytest.raises(BangerError) as caught:
        lowest_free("10.0.0.1", 30, used=["10.0.0.2"])
    assert caught.value.code is ErrorCode.NO_ADDRESS
    assert caught.value.hint


def test_the_mac_carries_the_address() -> None:
    assert mac_of("172.16.0.2") == "06:00:ac:10:00:02"
