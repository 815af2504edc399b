"""Copies whose source or reader rests: a signal, the agent's error and its end are noticed all the same."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from banger.client.copy import pack_out, unpack_in
from banger.errors import BangerError, ErrorCode
from banger.guest import wire
from tests.unit.client.test_copy import FOLDER, agent, data_frame, error, hello, read_frame, started

RESCUE_S = 30
"""So long a copy that hears nothing may hang before the test ends it."""


class Told(Exception):
    pass


def tell(_number: int, _frame: FrameType | None) -> None:
    raise Told


@contextmanager
def told_elsewhere(waiting: threading.Event, rescue: threading.Event) -> Iterator[None]:
    """Once we sleep in a system call, a signal whose arrival does not end that call: another thread gets it.

    That is how one looks that comes between the interpreter's last look for signals and the call.
    """
    us = threading.get_native_id()

    def send() -> None:
        assert waiting.wait(RESCUE_S)
        while Path(f"/proc/self/task/{us}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            pass
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, tell)
    thread = threading.Thread(target=send)
    thread.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    rescuer = threading.Timer(RESCUE_S, rescue.set)
    rescuer.start()
    try:
        yield
    finally:
        rescuer.cancel()
        thread.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)
    assert not rescue.is_set(), "it was acted on only when the other end moved"


def until_closed(connection: socket.socket) -> None:
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass


def test_a_signal_is_acted_on_while_the_source_rests(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    taken, rescue = threading.Event(), threading.Event()

    def script(connection: socket.socket) -> None:
        connection.sendall(hello())
        assert read_frame(connection)[0] == wire.FRAME_COPY_IN
        connection.sendall(started())
        assert read_frame(connection) == (wire.FRAME_COPY_DATA, b"begun")
        taken.set()
        until_closed(connection)

    def end() -> None:
        rescue.wait()
        os.close(writer)

    ender = threading.Thread(target=end)
    ender.start()
    os.write(writer, b"begun")
    try:
        with agent(tmp_path, script) as client, told_elsewhere(taken, rescue), pytest.raises(Told):
            unpack_in(client, "vm", reader, "/x")
    finally:
        rescue.set()
        ender.join()
        os.close(reader)


def test_a_signal_is_acted_on_while_the_reader_rests(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    full, rescue = threading.Event(), threading.Event()

    def script(connection: socket.socket) -> None:
        connection.sendall(hello())
        read_frame(connection)
        connection.sendall(started(FOLDER))
        connection.setblocking(True)
        connection.sendall(data_frame(bytes(200_000)))  # more than the pipe holds
        full.set()
        until_closed(connection)

    def end() -> None:
        rescue.wait()
        os.close(reader)

    ender = threading.Thread(target=end)
    ender.start()
    try:
        with agent(tmp_path, script) as client, told_elsewhere(full, rescue), pytest.raises(Told):
            pack_out(client, "vm", "/x", writer)
    finally:
        rescue.set()
        ender.join()
        os.close(writer)


@pytest.mark.parametrize(
    ("said", "code", "brief"),
    [
        (error("io", "its disk is full", 28), ErrorCode.NO_SPACE, "its disk is full"),
        (b"", ErrorCode.GUEST_UNREACHABLE, "broke before the copy ended"),
    ],
)
def test_the_agent_is_heard_while_the_source_rests(
    tmp_path: Path, said: bytes, code: ErrorCode, brief: str
) -> None:
    """The source says nothing more for good: only the agent can end this."""
    reader, writer = os.pipe()

    def script(connection: socket.socket) -> None:
        connection.sendall(hello())
        read_frame(connection)
        connection.sendall(started())
        read_frame(connection)
        connection.sendall(said)

    os.write(writer, b"begun")
    try:
        with agent(tmp_path, script) as client, pytest.raises(BangerError, match=brief) as caught:
            unpack_in(client, "vm", reader, "/x")
        assert caught.value.code == code
    finally:
        os.close(reader)
        os.close(writer)


def test_an_output_that_is_full_is_named(tmp_path: Path) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(hello())
        read_frame(connection)
        connection.sendall(started(FOLDER) + data_frame(b"x" * 10_000))
        until_closed(connection)

    with open("/dev/full", "wb", buffering=0) as full, agent(tmp_path, script) as client:
        with pytest.raises(BangerError, match="our output: No space left") as caught:
            pack_out(client, "vm", "/x", full.fileno())
        assert caught.value.code == ErrorCode.NO_SPACE
