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


@pytest.mark.parametrize(
    ("bridge_ip", "prefix", "first", "last", "guests"),
    [
        ("10.0.0.1", 8, "10.0.0.2", "10.255.255.254", (1 << 24) - 3),
        ("10.9.0.1", 16, "10.9.0.2", "10.9.255.254", (1 << 16) - 3),
        ("10.9.3.254", 22, "10.9.0.1", "10.9.3.253", 1021),
        ("10.9.0.9", 29, "10.9.0.10", "10.9.0.14", 5),
        ("10.9.0.6", 30, "10.9.0.5", "10.9.0.5", 1),
    ],
)
def test_every_prefix_has_its_first_last_and_number(
    bridge_ip: str, prefix: int, first: str, last: str, guests: int
) -> None:
    network = bridge_network(bridge_ip, prefix)
    assert lowest_free(bridge_ip, prefix, used=[]) == first
    assert network.num_addresses - 3 == guests
    if guests > 1 << 16:  # more than a test can take
        return
    every = [str(host) for host in network.hosts() if str(host) != bridge_ip]
    assert lowest_free(bridge_ip, prefix, used=every[:-1]) == last
    with pytest.raises(BangerError, match=f"all {guests} guest addresses") as caught:
        lowest_free(bridge_ip, prefix, used=every)
    assert caught.value.code is ErrorCode.NO_ADDRESS


def test_the_mac_carries_the_address() -> None:
    assert mac_of("172.16.0.2") == "06:00:ac:10:00:02"
