"""Asking a guest for its port: what an old, a broken or a hostile agent can do to us."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banger.client import forward
from banger.client.agentconnection import AgentConnection
from banger.client.client import Client
from banger.client.errors import GuestUnreachable
from banger.client.forward import PortRefused, open_port, open_ssh
from banger.errors import BangerError
from banger.guest import wire

NOBODY = cast(Client, object())
Say = Callable[[bytes], None]


def hello(features: str = "health exec forward") -> bytes:
    fields = wire.encode_fields([(wire.HELLO_VERSION, 1), (wire.HELLO_FEATURES, features)])
    return wire.encode_frame(wire.FRAME_HELLO, fields)


def error(code: str, message: str) -> bytes:
    fields = wire.encode_fields([(wire.ERROR_CODE, code), (wire.ERROR_MESSAGE, message)])
    return wire.encode_frame(wire.FRAME_ERROR, fields)


class Guest:
    """Agents that have said all they will: each connection is a socket with one of the scripts in it."""

    def __init__(self) -> None:
        self.scripts: list[bytes] = []
        self.early = 0
        self.asked = 0
        self._ends: list[socket.socket] = []

    def connect(self, _client: Client, _reference: str) -> AgentConnection:
        script = self.scripts[min(self.asked, len(self.scripts) - 1)]
        self.asked += 1
        ours, theirs = socket.socketpair()
        self._ends += [ours, theirs]
        theirs.sendall(script[self.early :])
        theirs.shutdown(socket.SHUT_WR)
        return AgentConnection(ours, script[: self.early])

    def close(self) -> None:
        for end in self._ends:
            end.close()


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    made = Guest()
    monkeypatch.setattr(forward, "connect_agent", made.connect)
    yield made
    made.close()


@pytest.mark.parametrize("early", [0, 3, len(hello())])
def test_not_a_byte_of_the_ports_is_lost(guest: Guest, early: int) -> None:
    """Whatever part of HELLO came with the daemon's answer already."""
    guest.scripts = [hello() + wire.encode_frame(wire.FRAME_OK) + b"SSH-2.0-x\r\n"]
    guest.early = early
    connection = open_port(NOBODY, "web", 22)
    assert connection.gettimeout() is None
    assert connection.recv(100) == b"SSH-2.0-x\r\n"


def test_an_older_agent_is_named_with_the_remedy(guest: Guest) -> None:
    guest.scripts = [hello("health exec")]
    with pytest.raises(GuestUnreachable) as caught:
        open_port(NOBODY, "web", 22)
    assert "older" in caught.value.brief
    assert "restart" in (caught.value.hint or "")


def test_refusals_are_told_apart(guest: Guest) -> None:
    guest.scripts = [hello() + error("refused", "port 22: Connection refused\x1b[31m")]
    with pytest.raises(PortRefused) as caught:
        open_port(NOBODY, "web", 22)
    assert "\x1b" not in caught.value.brief
    guest.scripts = [hello() + error("busy", "the guest has no root yet")]
    with pytest.raises(BangerError, match="no root yet") as other:
        open_port(NOBODY, "web", 22)
    assert not isinstance(other.value, PortRefused)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.one_of(st.binary(max_size=64), st.binary(max_size=64).map(lambda tail: hello() + tail)))
def test_any_other_bytes_are_one_clear_error(guest: Guest, said: bytes) -> None:
    guest.scripts = [said]
    brief = ""
    try:
        open_port(NOBODY, "web", 22)
    except BangerError as failure:
        brief = failure.brief
    finally:
        guest.close()
    assert brief or said[len(hello()) + wire.WIRE_HEADER_BYTES - 1] == wire.FRAME_OK


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What a look into the guest finds, one after the other; time does not pass."""
    found: list[int] = []

    def look(_client: Client, _name: str) -> int:
        return found.pop(0) if len(found) > 1 else found[0]

    monkeypatch.setattr(forward, "_look", look)
    monkeypatch.setattr(forward, "ASK_AGAIN_S", 0.0)
    monkeypatch.setattr(forward, "LOOK_AGAIN_S", -1.0)
    return found


REFUSED = hello() + error("refused", "port 22: Connection refused")
ANSWERED = hello() + wire.encode_frame(wire.FRAME_OK)


def test_a_guest_that_is_starting_is_asked_until_it_answers(guest: Guest, looks: list[int]) -> None:
    guest.scripts = [REFUSED] * 4 + [ANSWERED]
    looks += [forward.STARTING]
    said: list[str] = []
    open_ssh(NOBODY, "web", waiting=lambda: said.append("waiting"))
    assert guest.asked == 5
    assert said == ["waiting"]


def test_a_guest_that_has_started_is_asked_once_more(guest: Guest, looks: list[int]) -> None:
    """Its server may have come up between the refusal and the look."""
    guest.scripts = [REFUSED, REFUSED, ANSWERED]
    looks += [forward.STARTING, 0]
    open_ssh(NOBODY, "web")
    guest.asked = 0
    guest.scripts = [REFUSED]
    with pytest.raises(PortRefused) as caught:
        open_ssh(NOBODY, "web")
    assert guest.asked == 2
    assert "no ssh server listens in web" in caught.value.brief
    assert "vm shell web" in (caught.value.hint or "")


def test_an_image_without_a_server_is_not_waited_for(guest: Guest, looks: list[int]) -> None:
    guest.scripts = [REFUSED]
    looks += [forward.NO_SERVER]
    with pytest.raises(PortRefused, match="the image of web has no ssh server"):
        open_ssh(NOBODY, "web")
    assert guest.asked == 1


def test_waiting_ends(guest: Guest, looks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "BOOT_TIMEOUT_S", 0.05)
    guest.scripts = [REFUSED]
    looks += [forward.STARTING]
    with pytest.raises(PortRefused):
        open_ssh(NOBODY, "web")
