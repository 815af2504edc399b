"""Monitors started by hand: the baselines. Plain sockets and processes, nothing of banger's."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

DEADLINE_S = 120.0
TAP = "tap-by-hand"


@contextmanager
def tap() -> Iterator[None]:
    """The persistent tap TAP, up, on no bridge."""
    for words in (["tuntap", "add", TAP, "mode", "tap", "vnet_hdr"], ["link", "set", TAP, "up"]):
        subprocess.run(["ip", *words], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "delete", TAP], check=True, timeout=30)


def connect(path: Path, deadline: float) -> socket.socket:
    """To a socket that a process just started makes soon; tried every half millisecond."""
    while True:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            end.connect(str(path))
            end.settimeout(DEADLINE_S)
            return end
        except (FileNotFoundError, ConnectionRefusedError):
            end.close()
            if time.perf_counter() > deadline:
                raise
            time.sleep(0.0005)


def start(argv: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    log = (folder / "by-hand.log").open("ab")
    with log:
        return subprocess.Popen(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def end(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def api_put(api: socket.socket, path: str, body: Mapping[str, object]) -> None:
    """One call of Firecracker's; any reply but 204 is an error."""
    sent = json.dumps(body).encode()
    head = f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    api.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
    reply = b""
    while b"\r\n\r\n" not in reply:
        piece = api.recv(65536)
        if not piece:
            raise RuntimeError(f"PUT {path}: closed after {reply!r}")
        reply += piece
    if not reply.startswith(b"HTTP/1.1 204"):
        raise RuntimeError(f"PUT {path}: {reply.decode('utf-8', 'replace')}")


def qmp_continue(monitor: socket.socket) -> None:
    """Greeting, capabilities, cont; returns when QEMU has accepted it."""
    with monitor.makefile("rwb") as stream:
        stream.readline()
        for command in ("qmp_capabilities", "cont"):
            stream.write(json.dumps({"execute": command}).encode() + b"\n")
            stream.flush()
            while "return" not in json.loads(stream.readline()):
                pass
