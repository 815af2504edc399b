"""connect_agent: where the agent is known from before, the guest is called while the daemon answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from banger.client import shapes
from banger.client.agentconnection import MAX_KNOWN, connect_agent
from banger.client.client import Client
from banger.client.errors import GuestUnreachable
from banger.config.paths import resolve_paths
from banger.errors import BangerError, ErrorCode


class Monitor:
    """A machine's v.sock. hangs_up: how many connections it takes and closes without a word."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hangs_up = 0
        self.calls = 0
        self.asked = b""
        self.answered = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        held: list[socket.socket] = []
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                break
            connection.settimeout(60)
            line = b""
            while not line.endswith(b"\n"):
                line += connection.recv(1)
            self.calls += 1
            if self.hangs_up:
                self.hangs_up -= 1
                connection.close()
            else:
                with suppress(BrokenPipeError):  # one that was not wanted after all
                    connection.sendall(b"OK 7\n")
                held.append(connection)
            self.answered.set()
        for connection in held:
            connection.settimeout(60)
            with suppress(ConnectionResetError):
                self.asked += connection.recv(64)
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._listener.close()


class Daemon(Client):
    """A client whose daemon the test plays. early: wait for the guest's answer before answering."""

    def __init__(self, path: Path) -> None:
        super().__init__(resolve_paths({"BANGER_HOME": str(path.parent)}), autostart=False)
        self.path = path
        self.failure: BangerError | None = None
        self.early: threading.Event | None = None

    def connect_vm(self, reference: str, *, purpose: str = "exec") -> shapes.Connect:
        if self.early is not None:
            assert self.early.wait(60), "the guest is called only after the daemon has answered"
        if self.failure is not None:
            raise self.failure
        return {
            "id": "0" * 64,
            "name": reference,
            "vm_dir": str(self.path.parent),
            "vsock_path": str(self.path),
            "port": 1024,
            "exec": {},
        }


@contextmanager
def monitor(path: Path) -> Iterator[Monitor]:
    made = Monitor(path)
    try:
        yield made
    finally:
        made.close()


def test_the_second_time_the_guest_is_called_while_the_daemon_answers(tmp_path: Path) -> None:
    with monitor(tmp_path / "v.sock") as machine:
        client = Daemon(machine.path)
        connect_agent(client, "web").socket.close()
        machine.answered.clear()
        client.early = machine.answered
        connect_agent(client, "web").socket.close()
        assert machine.calls == 2


def test_a_vm_of_that_name_at_another_place_is_the_one_that_is_asked(tmp_path: Path) -> None:
    with monitor(tmp_path / "old") as old, monitor(tmp_path / "new") as new:
        client = Daemon(old.path)
        connect_agent(client, "web").socket.close()
        client.path = new.path
        with connect_agent(client, "web").socket as connection:
            connection.sendall(b"request")
        assert client.agents["web"] == (str(new.path), 1024)
    assert (old.asked, new.asked) == (b"", b"request")


def test_a_daemon_that_says_no_is_obeyed(tmp_path: Path) -> None:
    with monitor(tmp_path / "v.sock") as machine:
        client = Daemon(machine.path)
        connect_agent(client, "web").socket.close()
        client.failure = BangerError(ErrorCode.WRONG_STATE, "VM web is not running")
        with pytest.raises(BangerError, match="not running"):
            connect_agent(client, "web")
    assert machine.asked == b""  # the connection is closed: nothing more comes


def test_a_machine_that_ends_after_the_knock_is_called_again(tmp_path: Path) -> None:
    with monitor(tmp_path / "v.sock") as machine:
        client = Daemon(machine.path)
        connect_agent(client, "web").socket.close()
        machine.hangs_up = 1
        connect_agent(client, "web").socket.close()
        assert machine.calls == 3
        machine.hangs_up = 2
        with pytest.raises(GuestUnreachable):
            connect_agent(client, "web")
        assert "web" not in client.agents


def test_a_machine_that_is_gone_is_the_daemons_to_explain(tmp_path: Path) -> None:
    with monitor(tmp_path / "v.sock") as machine:
        client = Daemon(machine.path)
        connect_agent(client, "web").socket.close()
    machine.path.unlink()
    client.failure = BangerError(ErrorCode.WRONG_STATE, "VM web is not running")
    with pytest.raises(BangerError, match="not running"):
        connect_agent(client, "web")


def test_what_is_known_is_bounded(tmp_path: Path) -> None:
    with monitor(tmp_path / "v.sock") as machine:
        client = Daemon(machine.path)
        for number in range(MAX_KNOWN + 2):
            connect_agent(client, f"vm-{number}").socket.close()
            assert len(client.agents) <= MAX_KNOWN
