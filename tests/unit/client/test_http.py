"""The client's HTTP against scripted servers: every framing, every cut, every lie."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banger.client.client import Client
from banger.client.errors import DaemonUnreachable
from banger.client.http import MAX_HEAD, Connection, HTTPError
from banger.config.paths import resolve_paths
from banger.errors import BangerError, ErrorCode


class Scripted:
    """Answers each connection's first request with the same bytes, then closes it."""

    def __init__(self, path: Path) -> None:
        self.answer = b""
        self.pieces = 1 << 20
        self.requests: list[bytes] = []
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(65536))
                try:
                    for at in range(0, len(self.answer), self.pieces):
                        connection.sendall(self.answer[at : at + self.pieces])
                except OSError:
                    pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Scripted]:
    (tmp_path / "run").mkdir()
    scripted = Scripted(tmp_path / "run" / "bangerd.sock")
    yield scripted
    scripted.close()


def fetch(server: Scripted) -> tuple[int, bytes]:
    connection = Connection(server.path, 60.0)
    try:
        response = connection.request("GET", "/x", headers={})
        return response.status, response.read()
    finally:
        connection.close()


def chunked(*parts: bytes) -> bytes:
    body = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\nTrailer: x\r\n\r\n"


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(parts=st.lists(st.binary(min_size=1, max_size=300), max_size=6), pieces=st.integers(1, 400))
def test_chunks_come_together_however_they_are_cut(server: Scripted, parts: list[bytes], pieces: int) -> None:
    server.answer, server.pieces = chunked(*parts), pieces
    assert fetch(server) == (200, b"".join(parts))


def test_lengths_and_streams_to_the_end(server: Scripted) -> None:
    server.answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabcdef"
    assert fetch(server) == (404, b"abc")
    server.answer = b"HTTP/1.1 200 OK\r\n\r\nto the end"
    assert fetch(server) == (200, b"to the end")


def test_lines(server: Scripted) -> None:
    server.answer = chunked(b"one\ntw", b"o\n\nthr", b"ee")
    connection = Connection(server.path, 60.0)
    assert list(connection.request("GET", "/", headers={}).lines()) == [b"one", b"two", b"", b"three"]
    connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SMTP ready\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabXX\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 9 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X" * (MAX_HEAD + 70000),
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MAX_HEAD,
    ],
)
def test_nonsense_is_an_error_and_never_more(server: Scripted, answer: bytes) -> None:
    server.answer = answer
    with pytest.raises((HTTPError, ConnectionResetError)):
        fetch(server)


@pytest.fixture
def client(server: Scripted) -> Iterator[Client]:
    home = str(Path(server.path).parents[1])
    with Client(resolve_paths({"BANGER_HOME": home}), autostart=False, version="1.0") as sdk:
        yield sdk


def reply(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def test_errors_of_the_daemon_are_banger_errors(server: Scripted, client: Client) -> None:
    server.answer = reply(b'{"code":"not_found","brief":"no","hint":"look","data":{"a":1},"op_id":"x"}', 404)
    with pytest.raises(BangerError) as caught:
        client.list_vms()
    error = caught.value
    assert (error.code, error.brief, error.hint) == (ErrorCode.NOT_FOUND, "no", "look")
    assert error.data == {"a": 1, "op_id": "x"}
    server.answer = reply(b'{"code":"of_the_future","brief":"?"}', 400)
    with pytest.raises(BangerError) as caught:
        client.list_vms()
    assert caught.value.code is ErrorCode.INTERNAL
    server.answer = reply(b"<html>", 500)
    with pytest.raises(BangerError, match="answered 500"):
        client.list_vms()


def test_answers_that_are_no_json(server: Scripted, client: Client) -> None:
    for body in (b"{", b"[]", b"\xff"):
        server.answer = reply(body)
        with pytest.raises(BangerError) as caught:
            client.list_vms()
        assert caught.value.code is ErrorCode.INTERNAL


def test_versions_travel_with_every_request(server: Scripted, client: Client) -> None:
    server.answer = reply(b'{"vms":[]}')
    assert client.list_vms() == []
    assert b"\r\nBanger-Client-Version: 1.0\r\n" in server.requests[0]


def test_no_daemon_and_no_autostart(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="not running"):
        Client(resolve_paths({"BANGER_HOME": str(tmp_path)}), autostart=False).list_vms()


def test_stream_that_breaks_is_read_again_from_where_it_broke(server: Scripted, client: Client) -> None:
    event = b'{"seq":%d,"time":"t","op_id":"o","kind":"%s","result":{"id":"v"}}\n'
    server.answer = reply(b'{"id":"o","kind":"vm.create","status":"running","url":"/v1/operations/o"}')
    operation = client.create_vm()
    server.answer = chunked(event % (1, b"step"), event % (2, b"step"))[:-14]
    seen = []
    for one in operation.events():
        seen.append(one["seq"])
        if one["seq"] == 2:
            server.answer = chunked(event % (3, b"result"))
    assert seen == [1, 2, 3]
    assert b"events?after=0 " in server.requests[1]
    assert b"events?after=2 " in server.requests[-1]


def test_daemon_that_stays_away_is_an_error_in_the_end(server: Scripted, client: Client) -> None:
    server.answer = reply(b'{"id":"o","kind":"vm.create","status":"running","url":"/v1/operations/o"}')
    operation = client.create_vm()
    server.answer = b""
    with pytest.raises(DaemonUnreachable):
        operation.wait()
