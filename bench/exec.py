"""`true` in a running guest. Warm, through the SDK in one process, against a bare connect, spawn and reply
on the same vsock (a small static program in the guest: spawn_vsock.c): aim 1.3. And from the shell,
`banger vm exec VM -- true` against `ssh VM.vm true` over a live control connection of `banger ssh-config`'s.

At least 100 rounds of each, in a guest that has booted to its end. `parts` say where the milliseconds go,
each from the end of the one before; those of the shell come from a case with a clock in it (exec_probe.py).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from banger.client import shapes
from banger.client.agentconnection import connect_agent
from banger.client.client import Client
from banger.client.guest import Exec
from banger.guest import wire
from bench.harness import Case, Sample, p50, rounds, table, timed, wall
from bench.home import BANGER, Home, home

VM = "target"
SPAWN, ANSWER = 5001, 5002
LEAST_ROUNDS = 100
SHELL_PARTS = (
    ("python", "interpreter"),
    ("click", "click"),
    ("modules", "modules"),
    ("words", "words"),
    ("daemon", "daemon"),
    ("handshake", "handshake"),
    ("STARTED", "STARTED"),
    ("EXIT", "EXIT"),
    ("end", "command"),
)


def put_program(made: Home, folder: Path) -> None:
    program = folder / "spawn_vsock"
    words = ["-target", f"{os.uname().machine}-linux-musl", "-O2", "-static", "-o", str(program)]
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", *words, str(Path(__file__).with_name("spawn_vsock.c"))],
        check=True,
        timeout=300,
    )
    made.run("vm", "cp", "-q", str(program), f"{VM}:/usr/local/bin/spawn_vsock")
    made.run("vm", "exec", VM, "--", "sh", "-ec", "spawn_vsock >/dev/null 2>&1 </dev/null")


def bare(path: str, port: int) -> Callable[[], Sample]:
    """Connect as a monitor wants it, and take the one byte that the program answers."""

    def once() -> Sample:
        began = time.perf_counter()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(path)
            connection.sendall(b"CONNECT %d\n" % port)
            said = b""
            while len(said) < 2 or said[-2:-1] != b"\n":
                piece = connection.recv(64)
                if not piece:
                    raise RuntimeError(f"closed after {said!r}")
                said += piece
        if said[-1:] != b"\0":
            raise RuntimeError(f"true ended with {said[-1]}")
        return Sample((time.perf_counter() - began) * 1000)

    return once


class TimedClient(Client):
    answered = 0.0

    def __enter__(self) -> TimedClient:
        return self

    def connect_vm(self, reference: str, *, purpose: str = "exec") -> shapes.Connect:
        try:
            return super().connect_vm(reference, purpose=purpose)
        finally:
            self.answered = time.perf_counter()


class TimedExec(Exec):
    started = ended = 0.0

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == wire.FRAME_STARTED:
            self.started = time.perf_counter()
        elif kind == wire.FRAME_EXIT:
            self.ended = time.perf_counter()
        super()._take(kind, payload)


def through_sdk(client: TimedClient) -> Sample:
    began = time.perf_counter()
    connection = connect_agent(client, VM)
    connected = time.perf_counter()
    execution = TimedExec(connection, stdin=None)
    status = execution.run(["true"])
    done = time.perf_counter()
    if status:
        raise RuntimeError(f"true ended with {status}")
    parts = {
        "daemon": client.answered - began,
        "handshake": connected - client.answered,
        "STARTED": execution.started - connected,
        "EXIT": execution.ended - execution.started,
        "end": done - execution.ended,
    }
    return Sample((done - began) * 1000, parts={name: value * 1000 for name, value in parts.items()})


def with_a_clock(made: Home, folder: Path) -> Sample:
    marks = folder / "marks"
    env = {**made.env, "BENCH_MARKS": str(marks)}
    began = time.monotonic()
    sample = timed(
        [sys.executable, str(Path(__file__).with_name("exec_probe.py")), "vm", "exec", VM, "--", "true"], env
    )
    at = json.loads(marks.read_text())
    parts, before = {}, began
    for part, mark in SHELL_PARTS:
        parts[part] = (at[mark] - before) * 1000
        before = at[mark]
    return Sample(sample.wall_ms, sample.cpu_ms, parts)


def ssh_words(made: Home, folder: Path) -> list[str]:
    config = folder / "ssh_config"
    control = f"ControlMaster auto\nControlPath {folder}/%h\nControlPersist yes\nLogLevel ERROR\n"
    config.write_text(made.run("ssh-config") + control)
    return ["ssh", "-F", str(config), "-o", "BatchMode=yes", f"{VM}.vm"]


def run(count: int) -> str:
    ssh_true, banger_true = "ssh VM.vm true, live control connection", "banger vm exec VM -- true"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-exec-")))
        made = stack.enter_context(home())
        made.run("vm", "run", "--name", VM, "-d")
        put_program(made, folder)
        made.run("vm", "exec", VM, "--", "sh", "-c", "systemctl is-system-running --wait || true")
        ssh = ssh_words(made, folder)
        timed([*ssh, "true"], made.env)
        stack.callback(subprocess.run, [*ssh, "-O", "exit"], env=made.env, check=False, capture_output=True)
        client = stack.enter_context(TimedClient(made.paths))
        vsock = str(made.vm_dir(VM) / "v.sock")
        cases: dict[str, Case] = {
            "bare connect, spawn, reply": bare(vsock, SPAWN),
            "bare connect, reply": bare(vsock, ANSWER),
            "exec true through the SDK": lambda: through_sdk(client),
        }
        warm = rounds(cases, max(count, LEAST_ROUNDS))
        shell: dict[str, Case] = {
            ssh_true: lambda: timed([*ssh, "true"], made.env),
            banger_true: lambda: timed([BANGER, "vm", "exec", VM, "--", "true"], made.env),
            "the same, with a clock in it": lambda: with_a_clock(made, folder),
            "python3 -c 'import click'": lambda: timed([sys.executable, "-c", "import click"], made.env),
        }
        cold = rounds(shell, max(count, LEAST_ROUNDS))
    spawn, sdk = "bare connect, spawn, reply", "exec true through the SDK"
    return (
        table(warm, baseline=spawn)
        + f"\n\nWarm through the SDK: {by_round(warm[sdk], warm[spawn]):.2f} of the bare,"
        + " the median of the rounds' own ratios"
        + f" ({wall(warm[sdk]) - wall(warm[spawn]):.1f} ms more, p50 less p50); aim 1.3.\n\n"
        + table(cold, baseline=ssh_true)
        + f"\n\nFrom the shell: {by_round(cold[banger_true], cold[ssh_true]):.2f} of ssh, likewise."
    )


def by_round(samples: Sequence[Sample], base: Sequence[Sample]) -> float:
    """Each round against itself: a neighbour that comes half way through moves both of most rounds."""
    return p50([sample.wall_ms / other.wall_ms for sample, other in zip(samples, base, strict=True)])
