"""Bytes and round trips through a published port, against the machine's bare vsock and TCP to the guest's
address (through bridge and tap).

One program in the guest sends zeros or takes bytes on all three. Sizes: BENCH_PORTS_MIB (64). Throughput
in at most 5 rounds; a round trip is a connection, a request and one byte of answer, in turns.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.harness import Sample, p50, rounds, wall
from bench.home import Home, home

VM = "published"
PORT = 5000
PIECE = 256 << 10
MAX_ROUNDS = 5
Connect = Callable[[], socket.socket]


def move(connect: Connect, kind: bytes, count: int) -> Sample:
    """'r': that many bytes out of the guest; 'w': into it, until the guest has them all."""
    began = time.perf_counter()
    with connect() as connection:
        connection.sendall(kind + count.to_bytes(8, "little"))
        buffer = bytearray(PIECE)
        view = memoryview(buffer)
        if kind == b"r":
            while count > 0:
                got = connection.recv_into(buffer)
                if not got:
                    raise RuntimeError("it ended early")
                count -= got
        else:
            while count > 0:
                count -= connection.send(view[: min(count, PIECE)])
            connection.recv(1)
    return Sample((time.perf_counter() - began) * 1000)


def vsock(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(600)
    connection.connect(str(path))
    connection.sendall(b"CONNECT %d\n" % PORT)
    while connection.recv(1) != b"\n":
        pass
    return connection


def tcp(address: str, port: int) -> socket.socket:
    connection = socket.create_connection((address, port), timeout=600)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def install(made: Home, folder: Path) -> dict[str, Connect]:
    """A running VM with the program on vsock and TCP; the ways there."""
    made.run("vm", "run", "--name", VM, "-d", "-p", str(PORT))
    program = folder / "raw_vsock"
    words = ["-target", f"{os.uname().machine}-linux-musl", "-O2", "-static", "-o", str(program)]
    source = str(Path(__file__).with_name("raw_vsock.c"))
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *words, source], check=True, timeout=300)
    made.run("vm", "cp", "-q", str(program), f"{VM}:/usr/local/bin/raw_vsock")
    script = "for how in '' tcp; do raw_vsock $how >/dev/null 2>&1 </dev/null; done"
    made.run("vm", "exec", VM, "--", "sh", "-ec", script)
    with made.client() as client:
        vm = client.show_vm(VM)
    address = vm["runtime"].get("guest_ip", "")
    published = int(vm["spec"].get("published", [])[0]["host_port"])
    path = made.vm_dir(VM) / "v.sock"
    return {
        "vsock": lambda: vsock(path),
        "published": lambda: tcp("127.0.0.1", published),
        "address": lambda: tcp(address, PORT),
    }


def run(count: int) -> str:
    mib = int(os.environ.get("BENCH_PORTS_MIB", "64"))
    with tempfile.TemporaryDirectory(prefix="bench-ports-") as folder, home() as made:
        ways = install(made, Path(folder))

        def cases(kind: bytes, size: int) -> dict[str, Callable[[], Sample]]:
            return {name: lambda way=way: move(way, kind, size) for name, way in ways.items()}  # type: ignore[misc]

        big = min(count, MAX_ROUNDS)
        taken = {
            f"{mib} MiB out": rounds(cases(b"r", mib << 20), big),
            f"{mib} MiB in": rounds(cases(b"w", mib << 20), big),
            "round trip": rounds(cases(b"r", 1), count),
        }
        rss = p50([carrier_rss_kib(made) for _ in range(3)])
    lines = [
        "| p50 | vsock ms | published ms | address ms | published to vsock | published to address |",
        "|---|---|---|---|---|---|",
    ]
    for what, samples in taken.items():
        bare, carried, direct = (wall(samples[name]) for name in ("vsock", "published", "address"))
        lines.append(
            f"| {what} | {bare:.1f} | {carried:.1f} | {direct:.1f}"
            f" | {carried / bare:.2f} | {carried / direct:.2f} |"
        )
    return "\n".join(lines) + f"\n\nThe carrier's memory after it: {rss / 1024:.1f} MiB."


def carrier_rss_kib(made: Home) -> float:
    pid = int(Path(made.paths.ports_dir, "ports.pid").read_text().split("\n")[1].split()[0])
    status = Path(f"/proc/{pid}/status").read_text()
    return float(status.partition("VmRSS:")[2].split()[0])
