"""Connections to a process's Unix socket are counted; other sockets and other processes are not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from banger.system.socketuse import connections, parse_connected

HEAD = "Num       RefCount Protocol Flags    Type St Inode Path\n"
SERVER = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind("v.sock")
server.listen()
print("listening", flush=True)
held = [server.accept() for _ in range(2)]
print("held", flush=True)
sys.stdin.read()
"""


def test_parse_takes_connected_sockets_of_that_name() -> None:
    text = (
        HEAD
        + "0000000000000000: 00000002 00000000 00010000 0001 01 11 v.sock\n"
        + "0000000000000000: 00000003 00000000 00000000 0001 03 12 v.sock\n"
        + "0000000000000000: 00000003 00000000 00000000 0001 03 13\n"
        + "0000000000000000: 00000003 00000000 00000000 0001 03 14 /a b/v.sock\n"
        + "0000000000000000: 00000003 00000000 00000000 0001 03 15 v.sock_1025\n"
    )
    assert parse_connected(text, "v.sock") == {"12", "14"}


@given(st.text(max_size=200))
def test_parse_survives_anything(text: str) -> None:
    parse_connected(text, "v.sock")


def test_counts_what_a_process_has_accepted(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-I", "-c", SERVER],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    with server:
        try:
            assert server.stdout.readline() == b"listening\n"
            assert connections(server.pid, "v.sock") == 0
            with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
                one.connect(str(tmp_path / "v.sock"))
                two.connect(str(tmp_path / "v.sock"))
                assert server.stdout.readline() == b"held\n"
                assert connections(server.pid, "v.sock") == 2
                assert connections(server.pid, "other.sock") == 0
                assert connections(os.getpid(), "v.sock") == 0
        finally:
            server.stdin.close()
            server.wait(timeout=50)
    assert connections(server.pid, "v.sock") == 0
