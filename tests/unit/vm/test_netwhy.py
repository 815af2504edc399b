"""What `net why` takes for a place, and the names that it asks for."""

from __future__ import annotations

import pytest

from banger.errors import BangerError, ErrorCode
from banger.vm.netwhy import MOST_CANDIDATES, candidates, check_host


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
        ("192.0.2.256", "no name"),
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
