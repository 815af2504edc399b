"""`banger net why` against a daemon of the test's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.cli.net import target
from banger.cli.options import BadValue
from tests.unit.cli.conftest import Instance


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("example.org:443", ("example.org", 443, "tcp")),
        ("192.0.2.7", ("192.0.2.7", 0, "tcp")),
        ("web.vm:53/udp", ("web.vm", 53, "udp")),
        ("2001:db8::1", ("2001:db8::1", 0, "tcp")),
    ],
)
def test_a_place(text: str, meant: tuple[str, int, str]) -> None:
    assert target(text) == meant


@pytest.mark.parametrize(
    "text", ["", ":80", "web:", "web:0", "web:65536", "web:http", "web/udp", "web:1/sctp", "web:\u0661"]
)
def test_what_is_no_place_is_wrong_usage(text: str) -> None:
    with pytest.raises(BadValue):
        target(text)


@pytest.fixture
def one(tmp_path: Path, agent_program: Path) -> Iterator[Instance]:
    instance = Instance(tmp_path / "home", agent_program)
    instance("vm", "create", "--name", "web")
    instance("vm", "create", "--name", "off", "--no-start")
    yield instance
    instance.end()


def test_what_is_printed_and_exited_with(one: Instance) -> None:
    through = one("net", "why", "web", "example.org:443")
    assert through.stdout.decode().splitlines() == [
        "guest link  ok  eth0 up\\x1b[31m",
        "answer      ok  refused",
        "",
        "nothing stops it: example.org",
    ]
    stopped = one("net", "why", "web", "example.org:81", status=1).stdout.decode().splitlines()
    assert stopped[1] == "answer      stops here  refused"
    assert stopped[-2:] == [
        "example.org refuses: nobody listens there on TCP port 81",
        "  start the \\x1b[31mservice",
    ]
    said = json.loads(one("net", "why", "web", "example.org:81", "--json", status=1).stdout)
    assert (said["cause"], said["through"], said["stages"][1]["mark"]) == (
        "not_listening",
        False,
        "stops here",
    )
    assert json.loads(one("net", "why", "web", "192.0.2.1", "--json").stdout)["protocol"] == "icmp"
    assert b"is not running" in one("net", "why", "off", "example.org", status=1).stderr
    assert b"is no port" in one("net", "why", "web", "example.org:x", status=2).stderr
