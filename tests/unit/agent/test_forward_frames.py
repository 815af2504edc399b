"""FORWARD in frames: each direction ends by itself, and what was broken off is told from what has ended."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from banger.guest import wire
from banger.guest.wire import Fields, encode_fields, encode_frame
from tests.unit.agent.conftest import TIMEOUT_S, Agent
from tests.unit.agent.test_forward import asked, echo, exactly, frame, rest, service

END = encode_frame(wire.FRAME_FORWARD_DATA)


def request(port: int, address: str = "") -> bytes:
    fields: list[tuple[int, bytes | str | int]] = [
        (wire.FORWARD_PORT, port),
        (wire.FORWARD_FLAGS, wire.FORWARD_FLAG_FRAMES),
    ]
    if address:
        fields.append((wire.FORWARD_ADDRESS, address))
    return encode_frame(wire.FRAME_FORWARD, encode_fields(fields))


def data(payload: bytes) -> bytes:
    return encode_frame(wire.FRAME_FORWARD_DATA, payload)


def until_end(connection: socket.socket) -> bytes:
    got = bytearray()
    while True:
        kind, payload = frame(connection)
        assert kind == wire.FRAME_FORWARD_DATA
        if not payload:
            return bytes(got)
        got += payload


def test_both_directions_and_both_ends(agent: Agent) -> None:
    with service(echo) as port, asked(agent, request(port)) as (connection, kind, payload):
        assert (kind, payload) == (wire.FRAME_OK, b"")
        connection.sendall(data(b"one") + data(b"two"))
        assert frame(connection) in ((wire.FRAME_FORWARD_DATA, b"one"), (wire.FRAME_FORWARD_DATA, b"onetwo"))
        connection.sendall(END)
        until_end(connection)
        assert rest(connection) == b""


def test_a_service_may_end_first_and_still_be_told(agent: Agent) -> None:
    told: list[bytes] = []

    def answer_then_listen(connection: socket.socket) -> None:
        connection.sendall(b"answer")
        connection.shutdown(socket.SHUT_WR)
        told.append(rest(connection))

    with service(answer_then_listen) as port, asked(agent, request(port)) as (connection, kind, _):
        assert kind == wire.FRAME_OK
        assert until_end(connection) == b"answer"
        connection.sendall(data(b"and more"))
        connection.sendall(END)
        assert rest(connection) == b""
    assert told == [b"and more"]


def test_a_host_may_end_first_and_still_be_answered(agent: Agent) -> None:
    def listen_then_answer(connection: socket.socket) -> None:
        told = rest(connection)
        time.sleep(0.2)
        connection.sendall(told.upper())

    with service(listen_then_answer) as port, asked(agent, request(port)) as (connection, _, _):
        connection.sendall(data(b"question") + END)
        assert until_end(connection) == b"QUESTION"
        assert rest(connection) == b""


def test_what_a_slow_service_has_not_read_yet_is_delivered_after_the_hosts_end(agent: Agent) -> None:
    told: list[int] = []

    def slow(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        told.append(len(rest(connection)))

    with service(slow) as port, asked(agent, request(port)) as (connection, _, _):
        assert until_end(connection) == b""
        connection.sendall(data(b"x" * 60_000) * 100 + END)
        assert rest(connection) == b""
    assert told == [6_000_000]


def test_a_host_that_goes_without_an_end_breaks_the_connection(agent: Agent) -> None:
    seen: list[bytes] = []
    serve = service(lambda connection: seen.append(rest(connection)))
    with serve as port, asked(agent, request(port)) as (connection, _, _):
        connection.sendall(data(b"and gone")[:-2])
    assert seen == [b"and go"]


def test_a_service_that_closes_early_breaks_it_off_after_its_answer(agent: Agent) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"413")

    with service(refuse) as port, asked(agent, request(port)) as (connection, _, _):
        connection.sendall(data(b"x"))
        assert until_end(connection) == b"413"
        try:
            while True:  # until the service's end has answered that it takes no more
                connection.sendall(data(b"y" * 1000))
        except (BrokenPipeError, ConnectionResetError):
            pass


def test_many_bytes_arrive_unchanged_whatever_the_frames(agent: Agent) -> None:
    block = os.urandom(1 << 20)
    wanted = hashlib.sha256(block * 16).digest()
    got: list[bytes] = []

    def swallow_then_send(connection: socket.socket) -> None:
        time.sleep(0.2)
        got.append(hashlib.sha256(rest(connection)).digest())
        connection.sendall(block * 16)

    with service(swallow_then_send) as port, asked(agent, request(port)) as (connection, _, _):
        for _ in range(16):
            at = 0
            for size in (1, 7, 65536, 65535, 4096, 300_000):
                while size and at < len(block):
                    piece = block[at : at + min(size, wire.WIRE_MAX_PAYLOAD)]
                    connection.sendall(data(piece))
                    at, size = at + len(piece), size - len(piece)
            while at < len(block):
                connection.sendall(data(block[at : at + 65536]))
                at += len(block[at : at + 65536])
        connection.sendall(END)
        assert hashlib.sha256(until_end(connection)).digest() == wanted
    assert got == [wanted]


@pytest.mark.parametrize(
    "wrong",
    [
        encode_frame(wire.FRAME_STDIN, b"x"),
        b"\xff\xff\xff\xff\x19",
        b"\x01\x00\x01\x00\x19",
        END + data(b"behind the end"),
    ],
)
def test_anything_else_ends_the_connection(agent: Agent, wrong: bytes) -> None:
    seen: list[bytes] = []
    serve = service(lambda connection: seen.append(rest(connection)))
    with serve as port, asked(agent, request(port)) as (connection, _, _):
        connection.sendall(wrong)
        rest(connection)  # ends
    assert seen == [b""]


def test_a_service_on_the_guests_address_alone_is_found(agent: Agent) -> None:
    """127.0.0.9 stands for the address of eth0: it is not the loopback's first."""
    with socket.socket() as nobodys, socket.socket() as listener:
        nobodys.bind(("127.0.0.1", 0))  # bound, and not listening: nor does anybody else there
        port = nobodys.getsockname()[1]
        listener.bind(("127.0.0.9", port))
        listener.listen()
        with asked(agent, request(port)) as (_, kind, payload):
            assert kind == wire.FRAME_ERROR
            assert Fields(payload).text(wire.ERROR_CODE) == "refused"
        with asked(agent, request(port, "127.0.0.9")) as (connection, kind, _):
            assert kind == wire.FRAME_OK
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(b"here")
                assert exactly(connection, 9) == data(b"here")


@pytest.mark.parametrize("address", ["", "x", "1.2.3", "::1", "1.2.3.4\0", "1" * 40])
def test_an_address_that_is_none(agent: Agent, address: str) -> None:
    payload = encode_fields([(wire.FORWARD_PORT, 1), (wire.FORWARD_ADDRESS, address)])
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

    with service(stay) as port, asked(agent, request(port)) as (connection, _, _):
        for half_closed in (False, True):
            if half_closed:
                connection.sendall(END)
            before = ticks()
            time.sleep(0.5)
            assert ticks() - before < 10, f"{half_closed=}"
        over.set()
