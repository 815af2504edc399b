"""FORWARD: raw bytes between the host and a TCP port on the agent's own loopback."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from banger.guest import wire
from banger.guest.wire import Fields, encode_fields, encode_frame
from tests.unit.agent.conftest import TIMEOUT_S, Agent


def request(port: int) -> bytes:
    return encode_frame(wire.FRAME_FORWARD, encode_fields([(wire.FORWARD_PORT, port)]))


def exactly(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = connection.recv(length - len(data))
        assert piece, f"ended after {len(data)} of {length} bytes"
        data += piece
    return data


def frame(connection: socket.socket) -> tuple[int, bytes]:
    """The next frame, and not a byte more."""
    length, kind = wire.decode_header(exactly(connection, wire.WIRE_HEADER_BYTES))
    return kind, exactly(connection, length)


@contextmanager
def asked(agent: Agent, data: bytes) -> Iterator[tuple[socket.socket, int, bytes]]:
    """A connection that sent this, and the answer behind HELLO."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(f"{agent.vm_dir}/v.sock")
        connection.sendall(b"CONNECT 1024\n")
        assert exactly(connection, 5) == b"OK 1\n"
        connection.sendall(data)
        kind, hello = frame(connection)
        assert kind == wire.FRAME_HELLO
        assert "forward" in Fields(hello).text(wire.HELLO_FEATURES).split()
        kind, payload = frame(connection)
        yield connection, kind, payload


@contextmanager
def service(serve: Callable[[socket.socket], None], *, family: int = socket.AF_INET) -> Iterator[int]:
    """A TCP service on the loopback for one connection; its port."""
    with socket.socket(family) as listener:
        listener.settimeout(TIMEOUT_S)
        listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listener.listen()

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(TIMEOUT_S)
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


def echo(connection: socket.socket) -> None:
    while piece := connection.recv(65536):
        connection.sendall(piece)


def rest(connection: socket.socket) -> bytes:
    data = bytearray()
    while piece := connection.recv(65536):
        data += piece
    return bytes(data)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_bytes_go_both_ways(agent: Agent, family: int) -> None:
    with service(echo, family=family) as port, asked(agent, request(port)) as (connection, kind, payload):
        assert (kind, payload) == (wire.FRAME_OK, b"")
        for data in (b"SSH-2.0-x\r\n", bytes(range(256))):
            connection.sendall(data)
            assert exactly(connection, len(data)) == data
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection) == b""


def test_what_is_sent_behind_the_request_at_once_arrives(agent: Agent) -> None:
    with service(echo) as port, asked(agent, request(port) + b"early") as (connection, kind, _):
        assert kind == wire.FRAME_OK
        assert exactly(connection, 5) == b"early"
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection) == b""


def test_many_bytes_with_slow_readers_arrive_unchanged(agent: Agent) -> None:
    data = os.urandom(1 << 20) * 24
    wanted = hashlib.sha256(data).digest()
    got: list[bytes] = []

    def swallow_then_send(connection: socket.socket) -> None:
        time.sleep(0.3)  # everything between fills up
        got.append(hashlib.sha256(rest(connection)).digest())
        connection.sendall(data)

    with service(swallow_then_send) as port, asked(agent, request(port)) as (connection, kind, _):
        assert kind == wire.FRAME_OK
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        assert hashlib.sha256(rest(connection)).digest() == wanted
    assert got == [wanted]


def test_a_service_that_ends_ends_the_connection_after_its_last_byte(agent: Agent) -> None:
    last = b"x" * 300_000
    serve = service(lambda connection: connection.sendall(last))
    with serve as port, asked(agent, request(port)) as (connection, kind, _):
        assert kind == wire.FRAME_OK
        assert rest(connection) == last  # and the end, though the host has not closed


def test_a_host_that_goes_is_seen_by_the_service(agent: Agent) -> None:
    seen: list[bytes] = []
    serve = service(lambda connection: seen.append(rest(connection)))
    with serve as port, asked(agent, request(port)) as (connection, kind, _):
        assert kind == wire.FRAME_OK
        connection.sendall(b"and gone")
    assert seen == [b"and gone"]


def test_a_host_that_has_gone_is_not_waited_for(agent: Agent) -> None:
    """The service never reads to the end and never closes by itself; the agent lets go all the same."""
    over = threading.Event()

    def stay(connection: socket.socket) -> None:
        over.wait(2 * TIMEOUT_S)

    with service(stay) as port:
        before = len(agent.children())
        with asked(agent, request(port)) as (_connection, kind, _):
            assert kind == wire.FRAME_OK
            assert len(agent.children()) > before - 1
            serving = set(agent.children())
        deadline = time.monotonic() + TIMEOUT_S
        while serving <= set(agent.children()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        over.set()


def test_nobody_listening_is_refused(agent: Agent) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and not listening
        port = unused.getsockname()[1]
        with asked(agent, request(port)) as (_, kind, payload):
            fields = Fields(payload)
            assert kind == wire.FRAME_ERROR
            assert fields.text(wire.ERROR_CODE) == "refused"
            assert str(port) in fields.text(wire.ERROR_MESSAGE)


def test_an_empty_request_means_ssh(agent: Agent) -> None:
    with asked(agent, encode_frame(wire.FRAME_FORWARD)) as (connection, kind, payload):
        if kind == wire.FRAME_OK:  # this host has an ssh server
            assert exactly(connection, 4) == b"SSH-"
        else:
            assert "port 22" in Fields(payload).text(wire.ERROR_MESSAGE)


@pytest.mark.parametrize(
    "payload",
    [
        encode_fields([(wire.FORWARD_PORT, 0)]),
        encode_fields([(wire.FORWARD_PORT, 65536)]),
        encode_fields([(wire.FORWARD_PORT, (1 << 64) - 1)]),
        encode_fields([(wire.FORWARD_PORT, b"22")]),
        struct.pack("<BI", wire.FORWARD_PORT, 1 << 31),
        b"\x01",
    ],
)
def test_malformed_requests(agent: Agent, payload: bytes) -> None:
    with asked(agent, encode_frame(wire.FRAME_FORWARD, payload)) as (_, kind, said):
        assert kind == wire.FRAME_ERROR
        assert Fields(said).text(wire.ERROR_CODE) == "bad_request"


def test_an_idle_connection_costs_no_processor(agent: Agent) -> None:
    def ticks() -> int:
        return sum(
            sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
            for pid in agent.children()
        )

    over = threading.Event()

    def stay(connection: socket.socket) -> None:
        over.wait(2 * TIMEOUT_S)

    with service(stay) as port, asked(agent, request(port)) as (connection, kind, _):
        assert kind == wire.FRAME_OK
        for half_closed in (False, True):
            if half_closed:
                connection.shutdown(socket.SHUT_WR)
            before = ticks()
            time.sleep(0.5)
            assert ticks() - before < 10, f"{half_closed=}"
        over.set()
