"""Health and the like, malformed and hostile bytes, connections that stall, READY."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from banger.guest import wire
from banger.guest.agent import AgentClient
from banger.guest.errors import AgentRefused
from banger.guest.ready import ReadyListener
from banger.guest.wire import Fields, Frame, FrameReader, encode_fields, encode_frame
from tests.unit.agent.conftest import TIMEOUT_S, Agent

anyio_test = pytest.mark.anyio


def dial(agent: Agent) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT_S)
    connection.connect(f"{agent.vm_dir}/v.sock")
    connection.sendall(b"CONNECT 1024\n")
    assert connection.recv(5) == b"OK 1\n"
    return connection


def converse(agent: Agent, data: bytes, *, then_close: bool = False) -> list[Frame]:
    """All frames that come back for these bytes, until the agent closes."""
    reader = FrameReader()
    frames: list[Frame] = []
    with dial(agent) as connection:
        try:
            connection.sendall(data)
            if then_close:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                frames += reader.feed(piece)
                if frames[-1:] and frames[-1].type in (wire.FRAME_ERROR, wire.FRAME_EXIT, wire.FRAME_OK):
                    break
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert frames[0].type == wire.FRAME_HELLO
    return frames[1:]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def error_code(frames: list[Frame]) -> str:
    assert [frame.type for frame in frames][-1] == wire.FRAME_ERROR
    return Fields(frames[-1].payload).text(wire.ERROR_CODE)


@anyio_test
async def test_hello_and_health(agent: Agent) -> None:
    async with await AgentClient.connect(agent.vm_dir) as client:
        assert client.hello is not None
        assert client.hello.version == wire.WIRE_VERSION
        assert client.hello.features >= {"health", "exec", "shutdown", "sync", "time"}
        assert client.hello.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        health = await client.health()
        again = await client.health()
    assert health.phase == "init"
    assert health.memory_total_kib >= health.memory_available_kib > 0
    assert health.root_total_bytes >= health.root_free_bytes > 0
    assert again.uptime_s >= health.uptime_s > 0


@anyio_test
async def test_sync(agent: Agent) -> None:
    await AgentClient(agent.vm_dir).sync()


@anyio_test
async def test_a_process_on_the_host_leaves_its_machine_alone(agent: Agent) -> None:
    client = AgentClient(agent.vm_dir)
    for request in (client.shutdown("poweroff"), client.shutdown("reboot"), client.set_time()):
        with pytest.raises(AgentRefused) as caught:
            await request
        assert caught.value.agent_code == "unsupported"


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(wire.FRAME_EXEC),
        encode_frame(wire.FRAME_EXEC, b"\x01\xff\xff\xff\xff"),
        encode_frame(wire.FRAME_EXEC, b"\x01\x02"),
        encode_frame(wire.FRAME_EXEC, encode_fields([(1, b"a\0b")])),
        encode_frame(wire.FRAME_EXEC, encode_fields([(1, "true"), (2, "no equals sign")])),
        encode_frame(wire.FRAME_EXEC, encode_fields([(1, "true"), (2, "=no name")])),
        encode_frame(wire.FRAME_EXEC, encode_fields([(1, "true"), (3, "x" * 5000)])),
        encode_frame(wire.FRAME_EXEC, encode_fields([(1, "true"), (4, "u" * 300)])),
        encode_frame(wire.FRAME_EXEC, encode_fields([(1, "true"), (5, b"short")])),
        encode_frame(wire.FRAME_EXEC, encode_fields([(1, "true"), (6, 65536)])),
        encode_frame(wire.FRAME_EXEC, encode_fields([(1, "x")] * 4097)),
        encode_frame(wire.FRAME_EXEC, encode_fields([(1, "true"), *[(2, "A=b")] * 4097])),
        encode_frame(wire.FRAME_SHUTDOWN),
        encode_frame(wire.FRAME_SHUTDOWN, encode_fields([(1, "explode")])),
        encode_frame(wire.FRAME_TIME, encode_fields([(1, 0)])),
        encode_frame(wire.FRAME_TIME, encode_fields([(1, 1 << 63)])),
        struct.pack("<IB", 65537, wire.FRAME_HEALTH),
        struct.pack("<IB", 1048577, wire.FRAME_EXEC),
        struct.pack("<IB", 0xFFFFFFFF, 0x77),
    ],
)
def test_malformed_requests(agent: Agent, data: bytes) -> None:
    assert error_code(converse(agent, data)) == "bad_request"


def test_unknown_requests_and_fields(agent: Agent) -> None:
    assert error_code(converse(agent, encode_frame(0x7E, b"whatever"))) == "unsupported"
    request = encode_frame(wire.FRAME_EXEC, encode_fields([(1, "true"), (200, "of a newer host")]))
    assert converse(agent, request)[-1].type == wire.FRAME_EXIT


def test_a_request_cut_off_ends_quietly(agent: Agent) -> None:
    whole = wire.encode_exec(["true"])
    for length in (0, 3, len(whole) - 1):
        assert converse(agent, whole[:length], then_close=True) == []


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<IB", 65537, wire.FRAME_STDIN),
        encode_frame(wire.FRAME_SIGNAL, encode_fields([(1, 0)])),
        encode_frame(wire.FRAME_SIGNAL, encode_fields([(1, 65)])),
        encode_frame(wire.FRAME_SIGNAL, b"\x01\x09\x00"),
        encode_frame(wire.FRAME_RESIZE, encode_fields([(1, 1 << 20), (2, 80)])),
        wire.encode_stdin(b"") + wire.encode_stdin(b"more after the end"),
        wire.encode_stdin(b"x" * 65536) * 9,
    ],
)
def test_malformed_frames_in_the_middle_end_the_command(agent: Agent, data: bytes) -> None:
    frames = converse(agent, wire.encode_exec(["sleep", "60"], stdin=True) + data)
    assert frames[0].type == wire.FRAME_STARTED
    assert error_code(frames) == "bad_request"
    pid = Fields(frames[0].payload).number(wire.STARTED_PID)
    deadline = time.monotonic() + TIMEOUT_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_unknown_frames_in_the_middle_are_skipped(agent: Agent) -> None:
    data = wire.encode_exec(["cat"], stdin=True) + encode_frame(0x2F, b"?") + wire.encode_stdin(b"")
    assert converse(agent, data)[-1].type == wire.FRAME_EXIT


def test_frames_byte_by_byte(agent: Agent) -> None:
    data = wire.encode_exec(["cat"], stdin=True) + wire.encode_stdin(b"hi") + wire.encode_stdin(b"")
    reader = FrameReader()
    frames: list[Frame] = []
    with dial(agent) as connection:
        for byte in data:
            connection.sendall(bytes([byte]))
        while not frames or frames[-1].type != wire.FRAME_EXIT:
            frames += reader.feed(connection.recv(65536))
    assert Frame(wire.FRAME_STDOUT, b"hi") in frames


def test_stalled_connections_stall_nobody_else(agent: Agent) -> None:
    """Half-open ones, cut-off requests, and twenty that do not read what they asked for."""
    with ExitStack() as stalled:
        for number in range(500):
            connection = stalled.enter_context(dial(agent))
            request = wire.encode_exec(["head", "-c", "1G", "/dev/zero"] if number % 25 == 0 else ["true"])
            connection.sendall(request if number % 25 == 0 else request[: number % 20])
        assert converse(agent, wire.encode_exec(["true"]))[-1].type == wire.FRAME_EXIT


def test_a_reader_that_never_reads_stalls_nobody_else(agent: Agent) -> None:
    with dial(agent) as stuck:
        stuck.sendall(wire.encode_exec(["yes"]))
        time.sleep(0.3)
        assert converse(agent, wire.encode_exec(["true"]))[-1].type == wire.FRAME_EXIT


@pytest.mark.parametrize("size", [300_000, 500_000, 600_000])
def test_output_of_a_command_that_has_ended_waits_for_a_slow_host(agent: Agent, size: int) -> None:
    reader = FrameReader()
    frames: list[Frame] = []
    with dial(agent) as connection:  # socket, agent and pipe hold about so much without anybody reading
        connection.sendall(wire.encode_exec(["head", "-c", str(size), "/dev/zero"]))
        time.sleep(0.5)
        while not frames or frames[-1].type != wire.FRAME_EXIT:
            frames += reader.feed(connection.recv(65536))
    assert sum(len(frame.payload) for frame in frames if frame.type == wire.FRAME_STDOUT) == size


def test_a_guest_that_is_full_says_so(agent: Agent) -> None:
    with ExitStack() as stalled:
        for _ in range(512):
            stalled.enter_context(dial(agent))
        assert error_code(converse(agent, wire.encode_exec(["true"]))) == "busy"
    deadline = time.monotonic() + TIMEOUT_S
    while True:  # their processes take a moment to end
        frames = converse(agent, wire.encode_exec(["true"]))
        if frames[-1].type == wire.FRAME_EXIT:
            break
        assert time.monotonic() < deadline


@anyio_test
async def test_ready_is_said_until_somebody_hears_it(agent: Agent) -> None:
    await asyncio.sleep(0.2)  # it has been calling for a while
    listener = ReadyListener(agent.vm_dir)
    await listener.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            hello = await listener.wait_ready()
        assert "exec" in hello.features
        async with asyncio.timeout(TIMEOUT_S):
            while agent.children():  # noqa: ASYNC110 - another process's children
                await asyncio.sleep(0.01)
    finally:
        await listener.aclose()


def test_a_killed_server_leaves_no_caller_behind(agent: Agent) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    children = agent.children()
    assert children
    agent.process.kill()
    agent.process.wait(TIMEOUT_S)
    for child in children:
        while not is_gone(child):
            assert time.monotonic() < deadline
            time.sleep(0.01)
