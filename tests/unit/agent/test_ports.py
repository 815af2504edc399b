"""PORTS: real listeners of this host, as the agent finds them; and agents that lie."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.guest import wire
from banger.guest.ports import Listener, ask_listeners, parse_listener
from banger.guest.wire import WireError, encode_fields, encode_frame
from tests.fakes.guestagent import FakeGuestSocket
from tests.unit.agent.conftest import TIMEOUT_S, Agent

anyio_test = pytest.mark.anyio


@anyio_test
async def test_listeners_of_every_kind(agent: Agent) -> None:
    mine: dict[tuple[str, str, int], socket.socket] = {}
    with ExitStack() as stack:
        for family, kind, address, protocol in (
            (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", "tcp"),
            (socket.AF_INET6, socket.SOCK_STREAM, "::1", "tcp"),
            (socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0", "tcp"),
            (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1", "udp"),
            (socket.AF_INET6, socket.SOCK_DGRAM, "::1", "udp"),
        ):
            made = stack.enter_context(socket.socket(family, kind))
            made.bind((address, 0))
            if kind == socket.SOCK_STREAM:
                made.listen(1)
            mine[protocol, address, made.getsockname()[1]] = made
        bound_only = stack.enter_context(socket.socket())
        bound_only.bind(("127.0.0.1", 0))
        told = (await ask_listeners(agent.vm_dir, timeout_s=TIMEOUT_S)).listeners
        by_key = {(one.protocol, one.address, one.port): one for one in told}
        assert mine.keys() <= by_key.keys()
        for key in mine:
            assert (by_key[key].pid, by_key[key].uid) == (os.getpid(), os.getuid())
            assert by_key[key].process == Path("/proc/self/comm").read_text().rstrip("\n")
        assert ("tcp", *bound_only.getsockname()) not in by_key


@anyio_test
async def test_more_than_are_told_are_counted(agent: Agent) -> None:
    with ExitStack() as stack:
        for _ in range(wire.WIRE_MAX_PORTS + 8):
            made = stack.enter_context(socket.socket())
            made.bind(("127.0.0.1", 0))
            made.listen(1)
        told = await ask_listeners(agent.vm_dir, timeout_s=TIMEOUT_S)
    assert len(told.listeners) == wire.WIRE_MAX_PORTS
    assert told.left_out >= 8


def port(**fields: object) -> bytes:
    known = {
        "protocol": "tcp",
        "address": "0.0.0.0",
        "port": 80,
        "pid": 7,
        "process": "x\x1b[31m\n",
        **fields,
    }
    tags = (wire.PORT_PROTOCOL, wire.PORT_ADDRESS, wire.PORT_NUMBER, wire.PORT_PID, wire.PORT_PROCESS)
    return encode_fields(zip(tags, known.values(), strict=True))  # type: ignore[arg-type]


def test_names_are_made_printable() -> None:
    assert parse_listener(port()) == Listener("tcp", "0.0.0.0", 80, 0, 7, "x\ufffd[31m\ufffd")


@pytest.mark.parametrize(
    "fields",
    [{"protocol": "sctp"}, {"address": "1.2.3"}, {"address": "a" * 60_000}, {"port": 0}, {"port": 65536}],
)
def test_nonsense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(WireError):
        parse_listener(port(**fields))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_listener_or_nonsense(payload: bytes) -> None:
    try:
        parse_listener(payload)
    except WireError:
        pass


HELLO = encode_frame(wire.FRAME_HELLO, encode_fields([(wire.HELLO_VERSION, 1)]))


@anyio_test
@pytest.mark.parametrize(
    "reply",
    [
        encode_frame(wire.FRAME_PORT, port()) * (wire.WIRE_MAX_PORTS + 2),
        encode_frame(wire.FRAME_PORT, port()),
        encode_frame(wire.FRAME_PORT, b"\1"),
        encode_frame(wire.FRAME_STDOUT, b"x"),
        b"\xff\xff\xff\xff\x16",
    ],
)
async def test_an_agent_that_lies_is_an_error(tmp_path: Path, reply: bytes) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(HELLO)
        connection.recv(64)
        connection.sendall(reply)

    fake = FakeGuestSocket(str(tmp_path / "v.sock"), script)
    try:
        with pytest.raises(BangerError) as caught:
            await ask_listeners(str(tmp_path), timeout_s=TIMEOUT_S)
        assert caught.value.code is ErrorCode.GUEST_UNREACHABLE
    finally:
        fake.close()


@anyio_test
async def test_an_agent_that_is_silent_is_a_timeout(tmp_path: Path) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(HELLO)
        while connection.recv(64):
            pass

    fake = FakeGuestSocket(str(tmp_path / "v.sock"), script)
    try:
        with pytest.raises(BangerError) as caught:
            await ask_listeners(str(tmp_path), timeout_s=0.3)
        assert caught.value.code is ErrorCode.TIMEOUT
    finally:
        fake.close()
