"""Published ports: what is read, what is refused and how, and that what is printed reads the same."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.model.published import (
    PortSpec,
    Which,
    check_published,
    endpoint,
    matches,
    overlap,
    parse_published,
    parse_which,
    short_text,
    spec_text,
)

PORTS = st.integers(1, 65535)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(
    lambda address: str(ipaddress.ip_address(address))
)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("8080:80", PortSpec("127.0.0.1", 8080, 80)),
        ("8080:80/tcp", PortSpec("127.0.0.1", 8080, 80)),
        (" 8080:80/TCP ", PortSpec("127.0.0.1", 8080, 80)),
        ("80", PortSpec("127.0.0.1", 0, 80)),
        (":80", PortSpec("127.0.0.1", 0, 80)),
        ("0:80", PortSpec("127.0.0.1", 0, 80)),
        ("0.0.0.0:8080:80", PortSpec("0.0.0.0", 8080, 80)),
        ("0.0.0.0::80", PortSpec("0.0.0.0", 0, 80)),
        ("[::1]:8080:80", PortSpec("::1", 8080, 80)),
        ("[0:0::1]:8080:80", PortSpec("::1", 8080, 80)),
        ("[::]::80", PortSpec("::", 0, 80)),
        ("65535:65535", PortSpec("127.0.0.1", 65535, 65535)),
    ],
)
def test_forms(text: str, spec: PortSpec) -> None:
    assert parse_published(text) == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing"),
        ("8080:80/udp", "only TCP"),
        ("8080:80/icmp", "protocol"),
        ("8080:0", "between 1 and 65535"),
        ("8080:", "guest port is missing"),
        ("65536:80", "65536"),
        ("x:80", "not a number"),
        ("8000-8010:80-90", "range"),
        ("localhost:8080:80", "not an IPv4 address"),
        (":8080:80", "not an IPv4 address"),
        ("1.2.3:8080:80", "not an IPv4 address"),
        ("::1:8080:80", "colons"),
        ("[1.2.3.4]:8080:80", "not an IPv6 address"),
        ("[fe80::1%eth0]:8080:80", "not an IPv6 address"),
        ("[::1]8080:80", "no port behind"),
        ("[::1]", "no port behind"),
        ("[::1]:1:2:3", "too many parts"),
        ("0.0.0.0:80", "both ports"),
        ("[::1]:80", "both ports"),
        ("-1:80", "range"),
        ("\u0668\u0660:80", "not a number"),
        ("8080:8\0", "not a number"),
        ("1.2.3.4\0:80:80", "not an IPv4 address"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(BangerError) as caught:
        parse_published(text)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert said in caught.value.brief
    assert caught.value.brief.isascii()


@given(ADDRESSES, PORTS, PORTS)
def test_what_is_printed_reads_the_same(address: str, host_port: int, guest_port: int) -> None:
    spec = check_published(PortSpec(address, host_port, guest_port))
    assert parse_published(spec_text(spec)) == spec
    assert matches(parse_which(spec_text(spec)), spec)
    assert ipaddress.ip_address(spec.host_address) == ipaddress.ip_address(address)


@given(st.text(alphabet="0123456789.:[]/-tcpudx \0é", max_size=40))
def test_anything_else_is_a_clear_error(text: str) -> None:
    for parse in (parse_published, parse_which):
        with contextlib.suppress(BangerError):
            parse(text)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("80:1", "80:2", True),
        ("80:1", "81:1", False),
        ("80:1", "0.0.0.0:80:2", True),
        ("127.0.0.2:80:1", "80:1", False),
        ("[::]:80:1", "0.0.0.0:80:1", False),
        ("[::]:80:1", "[::1]:80:1", True),
        ("1", "1", False),
    ],
)
def test_overlap(one: str, other: str, expected: bool) -> None:
    first, second = parse_published(one), parse_published(other)
    assert overlap(first, second) is expected
    assert overlap(second, first) is expected


def test_unpublish_takes_the_port_alone_for_the_hosts() -> None:
    assert parse_which("8080") == Which(None, 8080, None)
    assert parse_which("8080:80") == Which(None, 8080, 80)
    assert parse_which("0.0.0.0:8080") == Which("0.0.0.0", 8080, None)
    assert not matches(parse_which("0.0.0.0:8080"), PortSpec("127.0.0.1", 8080, 80))
    assert not matches(parse_which("8080:81"), PortSpec("127.0.0.1", 8080, 80))
    with pytest.raises(BangerError):
        parse_which("0")


@pytest.mark.parametrize(
    "spec",
    [
        PortSpec("x", 1, 1),
        PortSpec("", 1, 1),
        PortSpec("::1", -1, 1),
        PortSpec("::1", 65536, 1),
        PortSpec("::1", 1, 0),
        PortSpec("::1", 1, 65536),
    ],
)
def test_the_daemon_checks_numbers_too(spec: PortSpec) -> None:
    with pytest.raises(BangerError):
        check_published(spec)


def test_how_it_is_shown() -> None:
    assert short_text(PortSpec("127.0.0.1", 8080, 80)) == "8080->80"
    assert short_text(PortSpec("0.0.0.0", 8080, 80)) == "0.0.0.0:8080->80"
    assert short_text(PortSpec("::1", 8080, 80)) == "[::1]:8080->80"
    assert endpoint("127.0.0.1", 80) == "127.0.0.1:80"
