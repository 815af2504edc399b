"""Netlink attributes, as the kernel sends them and as it never would."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.system import netlink


def test_the_loopback_is_there() -> None:
    index, _, attributes = netlink.read_link("lo")
    assert index == 1
    assert attributes[netlink.IFLA_IFNAME] == b"lo\0"
    assert (1, b"lo\0") in [(i, a[netlink.IFLA_IFNAME]) for i, _, a in netlink.read_links()]


def test_no_such_link() -> None:
    with pytest.raises(OSError, match="No such device"):
        netlink.read_link("banger-none")


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40), max_size=8))
def test_attributes_round_trip(given: dict[int, bytes]) -> None:
    data = b"".join(netlink._attribute(kind, payload) for kind, payload in given.items())
    assert netlink.attributes(data) == given


@given(st.binary(max_size=100))
def test_rubbish_ends(data: bytes) -> None:
    assert sum(len(payload) for payload in netlink.attributes(data).values()) <= len(data)


@pytest.mark.parametrize("length", [0, 3, 5, 0xFFFF])
def test_lengths_that_lie(length: int) -> None:
    assert netlink.attributes(struct.pack("=HH", length, 1)) == {}
