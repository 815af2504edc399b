"""A guest whose free memory is in small pieces: vsock refuses large packets there, and nothing is broken off.

A seccomp filter before the agent plays that kernel: a send of more than SMALL bytes fails with ENOMEM.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.client.copy import copy_out
from banger.guest import wire
from tests.unit.agent.conftest import Agent
from tests.unit.agent.copying import AgentsClient
from tests.unit.agent.sessions import Sessions
from tests.unit.agent.test_exec import run
from tests.unit.agent.test_forward import asked, exactly, request, service

SMALL = 8192
"""As the agent's SMALL_PIECE."""
SENDTO = {"x86_64": 44, "aarch64": 206}
MIB = 1 << 20
FILTERED = """#!{python} -IS
import ctypes, errno, os, struct, sys
sendto, small, program = {sendto}, {small}, {program!r}
load, equal, greater, answer = 0x20, 0x15, 0x25, 0x06  # BPF
number, length = 0, 32  # in struct seccomp_data: the call's, and its third argument
steps = [
    (load, 0, 0, number), (equal, 0, 3, sendto), (load, 0, 0, length), (greater, 0, 1, small),
    (answer, 0, 0, 0x00050000 | errno.ENOMEM), (answer, 0, 0, 0x7FFF0000),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
filter = struct.pack("HL", len(steps), ctypes.addressof(code))
prctl = ctypes.CDLL(None, use_errno=True).prctl
for words in ((38, 1, 0, 0, 0), (22, 2, filter, 0, 0)):  # NO_NEW_PRIVS, SECCOMP
    if prctl(*words):
        raise OSError(ctypes.get_errno(), "prctl")
os.execv(program, [program, *sys.argv[1:]])
"""


@pytest.fixture
def agent(agent_program: Path, tmp_path: Path) -> Iterator[Agent]:
    filtered = tmp_path / "filtered"
    sendto = SENDTO[platform.machine()]
    text = FILTERED.format(python=sys.executable, sendto=sendto, small=SMALL, program=str(agent_program))
    filtered.write_text(text)
    filtered.chmod(0o755)
    running = Agent(filtered, tmp_path)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.anyio
async def test_a_command(agent: Agent) -> None:
    out, _, exited = await run(agent, "head", "-c", str(MIB), "/dev/zero")
    assert (len(out), exited.status) == (MIB, 0)


def test_a_copy(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(MIB))
    copy_out(AgentsClient(agent), "vm", str(tmp_path / "source"), str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()


def test_a_session(agent: Agent) -> None:
    sessions = Sessions(agent)
    try:
        started = sessions.start("head", "-c", str(MIB), "/dev/zero")
        with sessions.attach(started) as attached:
            attached.to_exit()
            assert len(attached.out) == MIB
    finally:
        sessions.remove_all()


def test_a_connection(agent: Agent) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b"x" * MIB)

    with service(serve) as port, asked(agent, request(port)) as (connection, kind, _):
        assert kind == wire.FRAME_OK
        assert exactly(connection, MIB) == b"x" * MIB
