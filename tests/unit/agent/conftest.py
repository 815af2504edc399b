"""The agent, compiled with sanitizers and running as an ordinary process on a Unix socket."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capabilities import demand

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "agent" / "src"
FLAGS = (
    *("-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wformat=2"),
    *("-Wstrict-prototypes", "-Wmissing-prototypes", "-Wundef", "-Wvla", "-Werror"),
)
TIMEOUT_S = 60.0
"""For what must come, from an agent that sanitizers make slow, on a host that is busy."""


class Agent:
    """One agent process. folder: a VM's folder as far as the client can see (v.sock, v.sock_1025)."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.folder = folder
        self.reports = folder / "sanitizer"
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [program, "--serve-unix", folder / "v.sock", folder / "v.sock_1025"],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={
                    "PATH": os.environ["PATH"],
                    "ASAN_OPTIONS": f"log_path={self.reports}:detect_leaks=0:exitcode=99",
                    "UBSAN_OPTIONS": f"log_path={self.reports}:print_stacktrace=1",
                },
                start_new_session=True,
            )
        deadline = time.monotonic() + TIMEOUT_S
        accepted = False
        # It listens a moment before it has the child that calls READY; and the child that had our own call
        # has to be gone: while a child ends the kernel's list of children may lack others.
        while not (accepted and len(self.children()) == 1):
            assert self.process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
            accepted = accepted or self._accepts()

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(str(self.folder / "v.sock")) == 0

    @property
    def vm_dir(self) -> str:
        return str(self.folder)

    def children(self) -> list[int]:
        """Pids of the server's children: one per connection, and the one that calls READY."""
        return [
            int(pid)
            for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def stop(self) -> None:
        children = self.children() if self.process.poll() is None else []
        self.process.terminate()
        self.process.wait(TIMEOUT_S)
        for child in children:  # the one that calls READY, and connections a failed test left
            try:
                os.kill(child, 9)
            except ProcessLookupError:
                pass
        reports = [report.read_text() for report in self.folder.glob("sanitizer*")]
        assert not reports, reports[0]


@pytest.fixture(scope="session")
def agent_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent with address and undefined-behaviour sanitizers, made anew when its sources changed."""
    demand("clang")
    digest = hashlib.sha256(repr(FLAGS).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    build = ROOT / "agent" / "build"
    build.mkdir(parents=True, exist_ok=True)
    program = build / f"agent-sanitized-{digest.hexdigest()[:16]}"
    with (build / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            for old in build.glob("agent-sanitized-*"):
                old.unlink()
            made = tmp_path_factory.mktemp("agent") / "agent"
            sources = sorted(map(str, SOURCES.glob("*.c")))
            subprocess.run(["clang", *FLAGS, "-o", str(made), *sources], check=True, timeout=300)
            made.chmod(0o755)
            program.write_bytes(made.read_bytes())
            program.chmod(0o755)
    return program


@pytest.fixture
def agent(agent_program: Path, tmp_path: Path) -> Iterator[Agent]:
    """A fresh agent. A sanitizer's report fails the test."""
    running = Agent(agent_program, tmp_path)
    try:
        yield running
    finally:
        running.stop()
