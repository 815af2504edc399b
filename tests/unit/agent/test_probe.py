"""PROBE and NETWORK: the agent's own attempts, on this host's loopback; and guests that lie about theirs."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.guest import wire
from banger.guest.probe import (
    attempt,
    look,
    network_of,
    parse_hosts,
    parse_link,
    parse_outcome,
    parse_resolver,
    parse_routes,
)
from banger.guest.wire import WireError, encode_fields, encode_frame
from banger.model.netwhy import Flow, GuestRoute, Protocol
from tests.fakes.guestagent import FakeGuestSocket
from tests.unit.agent.conftest import TIMEOUT_S, Agent

anyio_test = pytest.mark.anyio
ATTEMPT_S = 15.0
"""The agent tries no longer, whatever it is asked."""


def flow(protocol: Protocol, port: int, *, target: str = "127.0.0.1", source: int = 0) -> Flow:
    return Flow(  # the host's part does not matter here
        tap="tap-fc-0",
        guest="127.0.0.1",
        gateway=target,
        target=target,
        protocol=protocol,
        port=port,
        source=source,
    )


@anyio_test
async def test_a_tcp_connection(agent: Agent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.socket() as spare:
            spare.bind(("127.0.0.1", 0))
            source = spare.getsockname()[1]
        outcome = await attempt(agent.vm_dir, flow(Protocol.TCP, port, source=source), timeout_s=ATTEMPT_S)
        assert outcome.error == ""
        with server.accept()[0] as there:
            assert there.getpeername() == ("127.0.0.1", source)
    refused = await attempt(agent.vm_dir, flow(Protocol.TCP, port), timeout_s=ATTEMPT_S)
    assert refused.error == "ECONNREFUSED"


@anyio_test
async def test_a_udp_exchange(agent: Agent) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(TIMEOUT_S)
        port = server.getsockname()[1]

        def answer() -> None:
            said, who = server.recvfrom(4096)
            server.sendto(said.upper() + b"!" * 4000, who)

        thread = threading.Thread(target=answer)
        thread.start()
        outcome = await attempt(agent.vm_dir, flow(Protocol.UDP, port), data=b"who?", timeout_s=ATTEMPT_S)
        thread.join()
        assert outcome.error == ""
        assert outcome.answer == b"WHO?" + b"!" * 2044
        silent = await attempt(agent.vm_dir, flow(Protocol.UDP, port), data=b"who?", timeout_s=0.1)
        assert (silent.error, silent.answer) == ("ETIMEDOUT", b"")
    closed = await attempt(agent.vm_dir, flow(Protocol.UDP, port), data=b"who?", timeout_s=ATTEMPT_S)
    assert closed.error == "ECONNREFUSED"


@anyio_test
async def test_a_taken_source_port_is_said(agent: Agent) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = await attempt(agent.vm_dir, flow(Protocol.TCP, port, source=port), timeout_s=ATTEMPT_S)
    assert outcome.error == "EADDRINUSE"


@anyio_test
@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(wire.PROBE_KIND, "sctp"), (wire.PROBE_ADDRESS, "127.0.0.1"), (wire.PROBE_PORT, 1)],
        [(wire.PROBE_KIND, "tcp"), (wire.PROBE_ADDRESS, "::1"), (wire.PROBE_PORT, 1)],
        [(wire.PROBE_KIND, "tcp"), (wire.PROBE_ADDRESS, "127.0.0.1")],
        [(wire.PROBE_KIND, "tcp"), (wire.PROBE_ADDRESS, "127.0.0.1"), (wire.PROBE_PORT, 65536)],
        [(wire.PROBE_KIND, "udp"), (wire.PROBE_ADDRESS, "127.0.0.1"), (wire.PROBE_DATA, b"x" * 513)],
        [(wire.PROBE_KIND, "tcptcptcp"), (wire.PROBE_ADDRESS, "127.0.0.1"), (wire.PROBE_PORT, 1)],
    ],
)
async def test_malformed_requests_are_refused(
    agent: Agent, fields: list[tuple[int, bytes | str | int]]
) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(TIMEOUT_S)
        raw.connect(f"{agent.vm_dir}/v.sock")
        raw.sendall(b"CONNECT 1024\n" + encode_frame(wire.FRAME_PROBE, encode_fields(fields)))
        said = b""
        while b"malformed PROBE" not in said:
            piece = raw.recv(4096)
            assert piece, said
            said += piece


@anyio_test
async def test_the_network_as_it_is(agent: Agent) -> None:
    before = parse_routes(Path("/proc/net/route").read_bytes())
    seen = await look(agent.vm_dir, timeout_s=TIMEOUT_S)
    loopback = next(link for link in seen.links if link.name == "lo")
    assert (loopback.up, loopback.address, loopback.netmask) == (True, "127.0.0.1", "255.0.0.0")
    assert seen.hosts.get("localhost") == "127.0.0.1"
    assert seen.nameservers == parse_resolver(Path("/etc/resolv.conf").read_bytes())[0]
    # this host's are not the test's alone: a bridge may come or go meanwhile
    assert seen.routes in (before, parse_routes(Path("/proc/net/route").read_bytes()))


def test_files_are_read_as_libc_reads_them() -> None:
    routes = parse_routes(
        b"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        b"eth0\t00000000\t010010AC\t0003\t0\t0\t5\t00000000\t0\t0\t0\n"
        b"eth0\t000010AC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        b"eth0\tnonsense\t0\t1\t0\t0\t0\t0\n"
    )
    assert routes == (
        GuestRoute(link="eth0", network="0.0.0.0/0", gateway="172.16.0.1", metric=5),
        GuestRoute(link="eth0", network="172.16.0.0/24"),
    )
    assert parse_resolver(
        b"# x\nnameserver 172.16.0.1\nnameserver fe80::1%eth0\nnameserver x\nsearch vm lan.\n"
    ) == (
        ("172.16.0.1", "fe80::1"),
        ("vm", "lan"),
    )
    assert parse_hosts(b"127.0.0.1 localhost Me\n::1 me6\n10.0.0.1 me # other\n") == {
        "localhost": "127.0.0.1",
        "me": "127.0.0.1",
    }


@given(st.binary(max_size=400), st.sampled_from(["routes", "resolver", "hosts"]))
def test_any_bytes_are_a_network(text: bytes, kind: str) -> None:
    seen = network_of([], {kind: b"title\n" + text})
    words = [*seen.search, *seen.hosts, *(route.link for route in seen.routes)]
    assert all(word.isprintable() for word in words)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_outcome_or_nonsense(payload: bytes) -> None:
    for parse in (parse_outcome, parse_link):
        try:
            parse(payload)
        except WireError:
            pass


HELLO = encode_frame(
    wire.FRAME_HELLO, encode_fields([(wire.HELLO_VERSION, 1), (wire.HELLO_FEATURES, "health probe")])
)
TEXT = encode_frame(
    wire.FRAME_NETWORK_TEXT, encode_fields([(wire.TEXT_KIND, "hosts"), (wire.TEXT_BYTES, b"x" * 3000)])
)


@anyio_test
@pytest.mark.parametrize(
    "reply",
    [TEXT * 300, b"", encode_frame(wire.FRAME_STDOUT, b"x"), encode_frame(wire.FRAME_NETWORK_LINK, b"\1")],
)
async def test_an_agent_that_lies_is_an_error(tmp_path: Path, reply: bytes) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(HELLO)
        connection.recv(64)
        connection.sendall(reply)

    fake = FakeGuestSocket(str(tmp_path / "v.sock"), script)
    try:
        with pytest.raises(BangerError) as caught:
            await look(str(tmp_path), timeout_s=TIMEOUT_S)
        assert caught.value.code is ErrorCode.GUEST_UNREACHABLE
    finally:
        fake.close()


@anyio_test
async def test_an_older_agent_is_said(tmp_path: Path) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(encode_frame(wire.FRAME_HELLO, encode_fields([(wire.HELLO_VERSION, 1)])))

    fake = FakeGuestSocket(str(tmp_path / "v.sock"), script)
    try:
        with pytest.raises(BangerError, match="older banger"):
            await attempt(str(tmp_path), flow(Protocol.TCP, 1), timeout_s=ATTEMPT_S)
    finally:
        fake.close()
