"""The carrier of published ports: a real process, real sockets, and the real agent as an ordinary process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from banger.guest import carrier as carrier_module
from banger.guest import wire
from banger.image.initramfs import agent_binary
from banger.system import process, tcplisten
from banger.vm.carrierprocess import CarrierProcess, Served
from tests.fakes.guestagent import FakeGuestSocket, end, serve_agent

pytestmark = [pytest.mark.host, pytest.mark.anyio, pytest.mark.usefixtures("netns")]

HOST = "127.0.0.1"
VM = "a" * 64


@pytest.fixture
def vm_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "vm"
    folder.mkdir()
    return folder


@pytest.fixture
def agent(vm_dir: Path, netns: None) -> Iterator[None]:
    """The agent of this VM: it dials this namespace's own loopback."""
    running = serve_agent(str(agent_binary()), vm_dir)
    try:
        yield
    finally:
        end(running)


class Service:
    """A TCP service in the guest: `serve` has each connection in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server((HOST, 0), backlog=512)
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(60)
            thread = threading.Thread(target=self._one, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _one(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._serve(connection)
            except ConnectionError:
                pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._accepting, *self._threads):
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def services(netns: None) -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    made: list[Service] = []

    def start(serve: Callable[[socket.socket], None]) -> int:
        made.append(Service(serve))
        return made[-1].port

    yield start
    for service in made:
        service.close()


def echo(connection: socket.socket) -> None:
    while piece := connection.recv(65536):
        connection.sendall(piece)


def rest(connection: socket.socket) -> bytes:
    data = bytearray()
    while piece := connection.recv(65536):
        data += piece
    return bytes(data)


@asynccontextmanager
async def carried(folder: Path) -> AsyncIterator[CarrierProcess]:
    running = CarrierProcess(str(folder / "ports"), pause_s=0.01)
    try:
        yield running
    finally:
        await running.close()


def publish(running: CarrierProcess, vm_dir: Path, port: int, *, key: str = "one") -> int:
    listener = tcplisten.listen(HOST, 0)
    running.serve(key, Served(listener=listener, vm=VM, vm_dir=str(vm_dir), address="127.0.0.9", port=port))
    return int(listener.getsockname()[1])


def connected(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=60)


def all_of(port: int) -> bytes:
    with connected(port) as client:
        return rest(client)


def is_reset(port: int) -> None:
    """An ordinary end would say that this is all. It may come while connect() has not returned."""
    with pytest.raises(ConnectionResetError):
        all_of(port)


def ask(port: int, data: bytes) -> bytes:
    with connected(port) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return rest(client)


async def test_both_halves_of_a_connection(
    tmp_path: Path, vm_dir: Path, agent: None, services: Callable[[Callable[[socket.socket], None]], int]
) -> None:
    told: list[bytes] = []

    def end_first(connection: socket.socket) -> None:
        connection.sendall(b"banner")
        connection.shutdown(socket.SHUT_WR)
        told.append(rest(connection))

    async with carried(tmp_path) as running:
        echoing = publish(running, vm_dir, services(echo), key="echo")
        ending = publish(running, vm_dir, services(end_first), key="end")
        big = os.urandom(3 << 20)
        answer: list[bytes] = []

        def talk() -> None:
            with connected(echoing) as client:
                reader = threading.Thread(target=lambda: answer.append(rest(client)))
                reader.start()
                client.sendall(big)
                client.shutdown(socket.SHUT_WR)
                reader.join(60)
            with connected(ending) as client:
                assert rest(client) == b"banner"
                client.sendall(b"after its end")

        await asyncio.to_thread(talk)
        assert answer == [big]
        deadline = time.monotonic() + 60
        while not told:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert told == [b"after its end"]
        assert running.problem == ""


async def test_a_carrier_that_is_killed_is_replaced_and_nobody_is_refused(
    tmp_path: Path, vm_dir: Path, agent: None, services: Callable[[Callable[[socket.socket], None]], int]
) -> None:
    async with carried(tmp_path) as running:
        port = publish(running, vm_dir, services(echo))
        assert await asyncio.to_thread(ask, port, b"before") == b"before"
        with connected(port) as cut:
            cut.sendall(b"x")
            assert await asyncio.to_thread(cut.recv, 1) == b"x"
            (first,) = running.launched
            assert process.send_signal(first, signal.SIGKILL)
            # the kernel ends it: a reset or, where nothing was unread, an end
            try:
                assert await asyncio.to_thread(cut.recv, 1) == b""
            except ConnectionResetError:
                pass
        for _ in range(3):
            assert await asyncio.to_thread(ask, port, b"after") == b"after"
        assert len(running.launched) == 2
        assert running.problem == ""


async def test_what_is_withdrawn_is_free_at_once_and_its_connections_end(
    tmp_path: Path, vm_dir: Path, agent: None, services: Callable[[Callable[[socket.socket], None]], int]
) -> None:
    async with carried(tmp_path) as running:
        port = publish(running, vm_dir, services(echo))
        stays = publish(running, vm_dir, services(echo), key="stays")
        with connected(port) as client, connected(stays) as other:
            client.sendall(b"x")
            assert await asyncio.to_thread(client.recv, 1) == b"x"
            running.withdraw("one")
            tcplisten.shut(tcplisten.listen(HOST, port))
            with pytest.raises(ConnectionRefusedError):
                connected(port)
            with pytest.raises(ConnectionResetError):
                await asyncio.to_thread(client.recv, 1)
            other.sendall(b"y")
            assert await asyncio.to_thread(other.recv, 1) == b"y"
        (identity,) = running.launched
        running.withdraw("stays")
        await running.rest()
        assert not process.is_same(identity)


async def test_a_guest_that_is_not_there_ends_the_connection_at_once(
    tmp_path: Path, vm_dir: Path, services: Callable[[Callable[[socket.socket], None]], int]
) -> None:
    async with carried(tmp_path) as running:
        port = publish(running, vm_dir, 80)

        await asyncio.to_thread(is_reset, port)


async def test_nobody_listening_in_the_guest_ends_it_too(tmp_path: Path, vm_dir: Path, agent: None) -> None:
    with socket.socket() as unused:
        unused.bind((HOST, 0))
        async with carried(tmp_path) as running:
            port = publish(running, vm_dir, unused.getsockname()[1])

            await asyncio.to_thread(is_reset, port)


async def test_a_slow_reader_slows_the_writer(
    tmp_path: Path, vm_dir: Path, agent: None, services: Callable[[Callable[[socket.socket], None]], int]
) -> None:
    total = 96 << 20
    sent = 0

    def send(connection: socket.socket) -> None:
        nonlocal sent
        piece = bytes(1 << 16)
        while sent < total:
            connection.sendall(piece)
            sent += len(piece)

    async with carried(tmp_path) as running:
        port = publish(running, vm_dir, services(send))

        def slow() -> int:
            with connected(port) as client:
                before = -1
                while sent != before:  # until everything between is full
                    before = sent
                    time.sleep(0.3)
                assert sent < total / 2
                return len(rest(client))

        assert await asyncio.to_thread(slow) == total


async def test_past_the_bound_connections_wait_for_an_end(
    tmp_path: Path, vm_dir: Path, agent: None, services: Callable[[Callable[[socket.socket], None]], int]
) -> None:
    async with carried(tmp_path) as running:
        port = publish(running, vm_dir, services(echo))

        def crowd() -> None:
            clients = [connected(port) for _ in range(carrier_module.MOST_OF_VM)]
            try:
                for client in clients:
                    client.sendall(b"x")
                for client in clients:
                    assert client.recv(1) == b"x"
                with connected(port) as late:
                    late.sendall(b"y")
                    late.settimeout(0.3)
                    with pytest.raises(TimeoutError):
                        late.recv(1)
                    clients.pop().close()
                    late.settimeout(60)
                    assert late.recv(1) == b"y"
            finally:
                for client in clients:
                    client.close()

        await asyncio.to_thread(crowd)


async def test_a_port_that_goes_gives_its_place_back(
    vm_dir: Path,
    agent: None,
    services: Callable[[Callable[[socket.socket], None]], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carrier_module, "descriptor_limit", lambda: 1)
    monkeypatch.setattr(carrier_module, "MOST_OF_VM", 1)
    guest_port = services(echo)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listeners: dict[str, socket.socket] = {}

    def say(message: dict[str, object], *descriptors: int) -> None:
        said = {"v": carrier_module.VERSION, **message}
        socket.send_fds(ours, [json.dumps(said).encode()], descriptors)

    def add(key: str, vm: str = VM) -> int:
        listeners[key] = tcplisten.listen(HOST, 0)
        port = {"vm": vm, "vm_dir": str(vm_dir), "address": "", "port": guest_port}
        say({"do": "add", "key": key, **port}, listeners[key].fileno())
        return int(listeners[key].getsockname()[1])

    with theirs:
        serving = asyncio.create_task(carrier_module.serve(theirs))
        with ours:
            add("shut")
            tcplisten.shut(listeners["shut"])  # as the daemon does it, before it says so
            one = add("one")
            for _ in range(2):
                assert await asyncio.to_thread(ask, one, b"x") == b"x"

            waiting = add("waiting", vm="b" * 64)
            with connected(one) as client:
                client.sendall(b"y")
                assert await asyncio.to_thread(client.recv, 1) == b"y"
                with connected(waiting):
                    client.sendall(b"z")  # a round of the carrier's, in which it sees who waits
                    assert await asyncio.to_thread(client.recv, 1) == b"z"
                    say({"do": "drop", "key": "waiting"})
            again = add("again", vm="b" * 64)
            assert await asyncio.to_thread(ask, again, b"x") == b"x"
        assert await serving == 0
    for listener in listeners.values():
        listener.close()


HELLO_OLD = wire.encode_frame(
    wire.FRAME_HELLO, wire.encode_fields([(wire.HELLO_VERSION, 1), (wire.HELLO_FEATURES, "forward")])
)
HELLO = wire.encode_frame(
    wire.FRAME_HELLO,
    wire.encode_fields([(wire.HELLO_VERSION, 1), (wire.HELLO_FEATURES, "forward forward-frames")]),
)
OK = wire.encode_frame(wire.FRAME_OK)


async def test_an_agent_without_frames_still_carries(tmp_path: Path, vm_dir: Path) -> None:
    def old(connection: socket.socket) -> None:
        connection.sendall(HELLO_OLD)
        connection.recv(1000)
        connection.sendall(OK + b"SSH-")
        connection.sendall(connection.recv(4))

    guest = FakeGuestSocket(f"{vm_dir}/v.sock", old)
    try:
        async with carried(tmp_path) as running:
            port = publish(running, vm_dir, 22)

            def talk() -> bytes:
                with connected(port) as client:
                    client.sendall(b"abcd")
                    return rest(client)

            assert await asyncio.to_thread(talk) == b"SSH-abcd"
    finally:
        guest.close()


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"\xff" * 100,
        HELLO + wire.encode_frame(wire.FRAME_ERROR),
        HELLO + OK + b"\xff\xff\xff\xff\x19",
        HELLO + OK + wire.encode_frame(wire.FRAME_STDOUT, b"x"),
        HELLO + OK + wire.encode_frame(wire.FRAME_FORWARD_DATA, b"cut off")[:-2],
        HELLO + OK,
    ],
)
async def test_what_a_hostile_guest_says_ends_that_connection_only(
    tmp_path: Path, vm_dir: Path, says: bytes
) -> None:
    def hostile(connection: socket.socket) -> None:
        connection.sendall(says)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(60)
        rest(connection)

    guest = FakeGuestSocket(f"{vm_dir}/v.sock", hostile)
    try:
        async with carried(tmp_path) as running:
            port = publish(running, vm_dir, 80)

            for _ in range(2):
                await asyncio.to_thread(is_reset, port)
            assert len(running.launched) == 1
            assert (tmp_path / "ports" / "ports.log").read_text() == ""
    finally:
        guest.close()


DAEMON = """
import asyncio, sys
from banger.system import tcplisten
from banger.vm.carrierprocess import CarrierProcess, Served
async def main():
    running = CarrierProcess(sys.argv[1])
    listener = tcplisten.listen("127.0.0.1", int(sys.argv[3]))
    served = Served(listener=listener, vm="a" * 64, vm_dir=sys.argv[2], address="", port=int(sys.argv[4]))
    running.serve("one", served)
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_kill_9_of_the_daemon_ends_all_of_it_and_the_next_takes_the_port(
    tmp_path: Path, vm_dir: Path, agent: None, services: Callable[[Callable[[socket.socket], None]], int]
) -> None:
    ended = threading.Event()

    def wait_for_the_end(connection: socket.socket) -> None:
        connection.sendall(connection.recv(1))
        try:
            rest(connection)
        finally:
            ended.set()

    folder = tmp_path / "ports"
    guest_port = services(wait_for_the_end)
    port = 20_001  # this namespace's own
    daemon = subprocess.Popen(  # noqa: ASYNC220 — it must not be this loop's child, which ends with it
        [sys.executable, "-c", DAEMON, str(folder), str(vm_dir), str(port), str(guest_port)],
        stdout=subprocess.PIPE,
    )
    assert daemon.stdout is not None
    with daemon.stdout:
        assert await asyncio.to_thread(daemon.stdout.readline) == b"ready\n"
        with connected(port) as client:
            client.sendall(b"x")
            assert await asyncio.to_thread(client.recv, 1) == b"x"
            before = process.read_pid_file(f"{folder}/ports.pid", role="ports")
            assert before is not None
            daemon.kill()
            daemon.wait()
            with pytest.raises(ConnectionResetError):
                await asyncio.to_thread(client.recv, 1)
    assert await asyncio.to_thread(ended.wait, 60), "the service was not told"
    async with carried(tmp_path) as running:
        await running.settle()
        assert not process.is_same(before)
        listener = tcplisten.listen(HOST, port)
        running.serve(
            "one", Served(listener=listener, vm=VM, vm_dir=str(vm_dir), address="", port=guest_port)
        )
        with connected(port) as client:
            client.sendall(b"y")
            assert await asyncio.to_thread(client.recv, 1) == b"y"


async def test_who_has_a_port_is_named(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            tcplisten.listen(HOST, port)
        with pytest.raises(OSError, match="in use"):
            tcplisten.listen("0.0.0.0", port)
        for address in (HOST, "0.0.0.0"):
            assert tcplisten.holder(address, port).endswith(f"(pid {os.getpid()})")
        assert tcplisten.holder("127.0.0.2", port) == ""
