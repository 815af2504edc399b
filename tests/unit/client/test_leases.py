"""The thread that holds leases, against a daemon that comes and goes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from banger.client.client import Client
from banger.client.leases import Leases
from banger.config.paths import Paths, resolve_paths
from tests.unit.cli.conftest import eventually

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = b'{"vm_id":"x","leased":true}\n'
GONE = b'HTTP/1.1 404 Not Found\r\nContent-Length: 42\r\n\r\n{"code":"not_found","brief":"no such VM"} \n'


class Holder:
    """As much of a daemon as a lease needs; `held` are the connections of leases that are open."""

    def __init__(self, path: str, *, gone: bool = False) -> None:
        self.held: list[socket.socket] = []
        self.asked: list[str] = []
        self._gone = gone
        Path(path).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.asked.append(connection.recv(4096).decode().split("\r\n")[0])
            if self._gone:
                with connection:
                    connection.sendall(GONE)
                continue
            self.held.append(connection)  # before whoever asked knows of it, and looks here
            connection.sendall(HEAD + b"%x\r\n%b\r\n" % (len(LINE), LINE))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self.held:
            connection.close()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "run").mkdir()
    return resolve_paths({"BANGER_HOME": str(tmp_path)})


@contextmanager
def holding(paths: Paths) -> Iterator[Leases]:
    leases = Leases(paths)
    try:
        yield leases
    finally:
        leases.close()


def hung_up(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def test_a_lease_is_taken_again_of_the_next_daemon(paths: Paths) -> None:
    first = Holder(paths.socket)
    with holding(paths) as leases, Client(paths, autostart=False) as client:
        leases.hold(client, "one")
        leases.hold(client, "two")
        first.close()
        second = Holder(paths.socket)
        eventually(lambda: len(second.held) == 2)
        assert sorted(second.asked) == [
            "POST /v1/vms/one/lease HTTP/1.1",
            "POST /v1/vms/two/lease HTTP/1.1",
        ]
        leases.release("one")
        eventually(lambda: sum(hung_up(connection) for connection in second.held) == 1)
    assert all(hung_up(connection) for connection in second.held)
    second.close()


def test_a_vm_that_is_gone_is_not_asked_for_for_ever(paths: Paths) -> None:
    first = Holder(paths.socket)
    with holding(paths) as leases, Client(paths, autostart=False) as client:
        leases.hold(client, "one")
        first.close()
        second = Holder(paths.socket, gone=True)
        eventually(lambda: bool(second.asked))
        eventually(lambda: not leases._held)
        second.close()


def test_no_thread_without_a_lease_nor_after_the_end(paths: Paths) -> None:
    before = threading.active_count()
    daemon = Holder(paths.socket)
    with holding(paths) as leases, Client(paths, autostart=False) as client:
        assert threading.active_count() == before + 1  # the daemon's
        leases.hold(client, "one")
        assert threading.active_count() == before + 2
    assert threading.active_count() == before + 1
    daemon.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_lets_go_at_once(paths: Paths) -> None:
    daemon = Holder(paths.socket)
    reader, writer = os.pipe()
    with holding(paths) as leases, Client(paths, autostart=False) as client:
        leases.hold(client, "one")
        client.close()
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)  # outlives the parent's lease
            os._exit(0)
        os.close(reader)
        leases.release("one")
        eventually(lambda: hung_up(daemon.held[0]))
        os.close(writer)
        os.waitpid(child, 0)
    daemon.close()
