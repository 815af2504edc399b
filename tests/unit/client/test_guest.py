"""Exec's loop against an agent that the test plays: sizes, nonsense, and guests that go away."""

from __future__ import annotations

import os
import pty
import socket
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from banger.client.agentconnection import AgentConnection
from banger.client.errors import GuestUnreachable
from banger.client.guest import CommandNotStarted, Exec
from banger.guest import wire
from banger.guest.wire import Fields, Frame, FrameReader, encode_fields, encode_frame

STARTED = encode_frame(wire.FRAME_STARTED, encode_fields([(wire.STARTED_PID, 7)]))


def exit_frame(code: int) -> bytes:
    return encode_frame(wire.FRAME_EXIT, encode_fields([(wire.EXIT_CODE, code)]))


class Guest:
    """The agent's end of a connection: frames in, bytes out."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._reader = FrameReader()
        self._frames: list[Frame] = []

    def next(self) -> Frame:
        while not self._frames:
            data = self.connection.recv(65536)
            assert data, "the client went away"
            self._frames = self._reader.feed(data)
        return self._frames.pop(0)


@contextmanager
def guest(script: Callable[[Guest], None]) -> Iterator[AgentConnection]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(60)
    failures: list[BaseException] = []

    def play() -> None:
        try:
            with theirs:
                script(Guest(theirs))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield AgentConnection(ours)
    finally:
        ours.close()
        thread.join(60)
    assert not failures, failures


@pytest.fixture
def outputs() -> Iterator[tuple[int, int]]:
    """(a pipe's reader, its writer)"""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def run(
    script: Callable[[Guest], None], stdout: int, *, stdin: int | None = None, terminal: bool = False
) -> int:
    with guest(script) as connection:
        execution = Exec(connection, stdin=stdin, stdout=stdout, stderr=stdout, terminal=terminal)
        return execution.run(["true"])


def test_a_size_that_changed_before_the_start_is_sent(outputs: tuple[int, int]) -> None:
    """No SIGWINCH tells of it: it came before anybody listened for one."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    sizes: list[tuple[int, int]] = []

    def script(agent: Guest) -> None:
        fields = Fields(agent.next().payload)
        sizes.append((fields.number(wire.EXEC_ROWS), fields.number(wire.EXEC_COLS)))
        termios.tcsetwinsize(ours, (50, 132))
        agent.connection.sendall(STARTED)
        frame = agent.next()
        assert frame.type == wire.FRAME_RESIZE
        fields = Fields(frame.payload)
        sizes.append((fields.number(wire.RESIZE_ROWS), fields.number(wire.RESIZE_COLS)))
        agent.connection.sendall(exit_frame(5))

    try:
        assert run(script, outputs[1], stdin=theirs, terminal=True) == 5
    finally:
        os.close(ours)
        os.close(theirs)
    assert sizes == [(24, 80), (50, 132)]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"", "does not answer"),
        (STARTED, "broke before the command ended"),
        (STARTED + encode_frame(wire.FRAME_STDOUT, b"x")[:-1], "broke before the command ended"),
        (STARTED + b"\xff\xff\xff\xff\x21", "speaks nonsense"),
        (STARTED + encode_frame(wire.FRAME_EXIT, b"\x01\xff"), "speaks nonsense"),
    ],
)
def test_guests_that_go_away_or_mad(outputs: tuple[int, int], reply: bytes, said: str) -> None:
    def script(agent: Guest) -> None:
        agent.next()
        agent.connection.sendall(reply)

    with pytest.raises(GuestUnreachable, match=said):
        run(script, outputs[1])


def test_output_before_the_end_is_written_although_the_reader_is_slow(outputs: tuple[int, int]) -> None:
    data = os.urandom(300_000)

    def script(agent: Guest) -> None:
        agent.next()
        frames = [
            encode_frame(wire.FRAME_STDOUT, data[at : at + 50_000]) for at in range(0, len(data), 50_000)
        ]
        agent.connection.sendall(STARTED + b"".join(frames) + exit_frame(0))

    received = bytearray()

    def read_slowly() -> None:
        while len(received) < len(data):
            received.extend(os.read(outputs[0], 1000))

    reader = threading.Thread(target=read_slowly)
    reader.start()
    assert run(script, outputs[1]) == 0
    reader.join(60)
    assert bytes(received) == data


@pytest.mark.parametrize(("code", "status"), [("not_found", 127), ("not_executable", 126), ("no_cwd", 0)])
def test_refusals(outputs: tuple[int, int], code: str, status: int) -> None:
    def script(agent: Guest) -> None:
        agent.next()
        fields = encode_fields([(wire.ERROR_CODE, code), (wire.ERROR_MESSAGE, "no\x1b[2J")])
        agent.connection.sendall(encode_frame(wire.FRAME_ERROR, fields))

    with pytest.raises(CommandNotStarted) as caught:
        run(script, outputs[1])
    assert (caught.value.status, caught.value.brief) == (status, "no\ufffd[2J")


def test_the_window_is_never_overrun(outputs: tuple[int, int], tmp_path: Path) -> None:
    window = wire.WIRE_STDIN_WINDOW
    data = os.urandom(window + 150_000)
    (tmp_path / "in").write_bytes(data)

    def script(agent: Guest) -> None:
        agent.next()
        agent.connection.sendall(STARTED)
        received = bytearray()
        for granted in (window, window + 100_000, len(data)):
            while len(received) < granted:
                received.extend(agent.next().payload)
            assert len(received) == granted
            if granted < len(data):
                agent.connection.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    agent.next()
                agent.connection.settimeout(60)
                grant = encode_fields([(wire.WINDOW_BYTES, 100_000)])
                agent.connection.sendall(encode_frame(wire.FRAME_WINDOW, grant))
        assert agent.next() == Frame(wire.FRAME_STDIN, b"")
        assert received == data
        agent.connection.sendall(exit_frame(0))

    with open(tmp_path / "in", "rb") as file:
        assert run(script, outputs[1], stdin=file.fileno()) == 0
