"""Ports and figures of a guest: which ports are asked whether they speak http, and how many at once."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.guest import wire
from banger.guest.ports import Listener
from banger.guest.wire import encode_fields, encode_frame
from banger.vm import guestview
from banger.vm.guestview import GuestView, is_reachable
from tests.fakes.guestagent import FakeGuestSocket
from tests.unit.vm.test_vitals import Bench
from tests.unit.vm.test_vitals import bench as bench

pytestmark = pytest.mark.anyio


class Probes:
    """Schemes by port; the ports that were asked."""

    def __init__(self, schemes: dict[int, str]) -> None:
        self.schemes = schemes
        self.asked: list[int] = []
        self.at_once = self.most_at_once = 0

    async def __call__(self, address: str, port: int, *, host: str, timeout_s: float) -> str:
        assert (address, host) == ("172.16.0.2", "172.16.0.2")
        assert timeout_s <= guestview.PROBE_TIMEOUT_S
        self.asked.append(port)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        return self.schemes.get(port, "")


class Agent:
    """A guest's agent that has these listeners, or one figure."""

    def __init__(self, vm_dir: str, *listeners: Listener) -> None:
        self._listeners = listeners
        self._socket = FakeGuestSocket(f"{vm_dir}/v.sock", self._serve)

    def _serve(self, connection: socket.socket) -> None:
        connection.sendall(encode_frame(wire.FRAME_HELLO, encode_fields([(wire.HELLO_VERSION, 1)])))
        kind = connection.recv(64)[4]
        if kind == wire.FRAME_PORTS:
            for one in self._listeners:
                fields: list[tuple[int, bytes | str | int]] = [
                    (wire.PORT_PROTOCOL, one.protocol),
                    (wire.PORT_ADDRESS, one.address),
                    (wire.PORT_NUMBER, one.port),
                    (wire.PORT_PID, one.pid),
                ]
                connection.sendall(encode_frame(wire.FRAME_PORT, encode_fields(fields)))
            connection.sendall(encode_frame(wire.FRAME_OK))
        elif kind == wire.FRAME_HEALTH and not self._listeners:
            connection.sendall(encode_frame(wire.FRAME_OK, encode_fields([(wire.HEALTH_LOAD1_X100, 150)])))
        while connection.recv(64):
            pass

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()


def tcp(port: int, address: str = "0.0.0.0") -> Listener:
    return Listener("tcp", address, port, 0, pid=port)


@pytest.fixture
async def alive(bench: Bench) -> Bench:
    bench.revive()
    return bench


async def test_links_are_of_what_can_be_reached_and_answers(alive: Bench) -> None:
    probes = Probes({80: "http", 443: "https", 8080: "http", 9000: "http"})
    listeners = (
        *(tcp(80), tcp(443, "::"), tcp(8080, "172.16.0.2"), tcp(9000, "127.0.0.1"), tcp(22)),
        Listener("udp", "0.0.0.0", 8080, 0),
        Listener("udp", "::1", 53, 0),
    )
    with Agent(alive.record.runtime.vm_dir, *listeners):
        said = await GuestView(alive.vitals._services, probe=probes).ports(alive.id)
    assert sorted(probes.asked) == [22, 80, 443, 8080]
    assert [(one.protocol, one.port, one.endpoint, one.url) for one in said.ports] == [
        ("tcp", 22, "172.16.0.2:22", ""),
        ("udp", 53, "", ""),
        ("tcp", 80, "172.16.0.2:80", "http://172.16.0.2/"),
        ("tcp", 443, "172.16.0.2:443", "https://172.16.0.2/"),
        ("tcp", 8080, "172.16.0.2:8080", "http://172.16.0.2:8080/"),
        ("udp", 8080, "172.16.0.2:8080", ""),
        ("tcp", 9000, "", ""),
    ]


async def test_probes_are_bounded(alive: Bench) -> None:
    probes = Probes({})
    with Agent(alive.record.runtime.vm_dir, *(tcp(1000 + number) for number in range(300))):
        said = await GuestView(alive.vitals._services, probe=probes).ports(alive.id)
    assert len(said.ports) == 300
    assert len(probes.asked) == guestview.MOST_PROBES
    assert probes.most_at_once <= guestview.PROBES_AT_ONCE


async def test_figures(alive: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    view = GuestView(alive.vitals._services)
    monkeypatch.setattr(guestview, "FIGURES_TIMEOUT_S", 50.0)
    with Agent(alive.record.runtime.vm_dir):
        figures = await view.figures(alive.id)
    assert figures is not None
    assert (figures.load1, figures.work_total_bytes) == (1.5, None)
    assert await view.figures(alive.id) is None, "no agent"
    Path(alive.record.runtime.vm_dir, "v.sock").unlink()
    monkeypatch.setattr(guestview, "FIGURES_TIMEOUT_S", 0.2)
    with Agent(alive.record.runtime.vm_dir, tcp(1)):
        assert await view.figures(alive.id) is None, "a silent one"


async def test_a_dead_vm(bench: Bench) -> None:
    view = GuestView(bench.vitals._services)
    assert await view.figures(bench.id) is None
    with pytest.raises(BangerError) as caught:
        await view.ports(bench.id)
    assert caught.value.code is ErrorCode.WRONG_STATE
    for ask in (view.ports, view.figures):
        with pytest.raises(BangerError) as caught:
            await ask("0" * 64)
        assert caught.value.code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize(
    ("address", "reachable"),
    [("0.0.0.0", True), ("::", True), ("172.16.0.2", True), ("172.17.0.1", False), ("127.0.0.1", False)],
)
async def test_reachable(address: str, reachable: bool) -> None:
    assert is_reachable(tcp(1, address), "172.16.0.2") == reachable
    assert not is_reachable(tcp(1, address), "")
