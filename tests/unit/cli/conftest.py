"""The real CLI as a subprocess, on a daemon process with fake services and real agents for guests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.agent.conftest import agent_program as agent_program  # the sanitized agent

CLI = str(Path(__file__).parents[2] / "fakes" / "bangercli.py")
TIMEOUT_S = 60


class Instance:
    """One BANGER_HOME and how commands run in it."""

    def __init__(self, home: Path, agent: Path, **env: str) -> None:
        self.home = home
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "BANGER_HOME": str(home),
            "BANGER_TEST_AGENT": str(agent),
            "LANG": "C.UTF-8",
            "TERM": "xterm",
            **env,
        }

    def popen(
        self,
        *argv: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", CLI, *argv],
            env={**self.env, **(env or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )

    def __call__(
        self, *argv: str, stdin: bytes | None = None, status: int | None = 0, **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to its end; the exit status is checked unless None."""
        with self.popen(
            *argv, stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL, env=env
        ) as child:
            try:
                out, err = child.communicate(stdin, timeout=TIMEOUT_S)
            except BaseException:
                child.kill()
                raise
        assert status is None or child.returncode == status, (
            argv,
            child.returncode,
            out[-2000:],
            err[-2000:],
        )
        return subprocess.CompletedProcess(argv, child.returncode, out, err)

    def ids(self) -> list[str]:
        return self("vm", "list", "-q").stdout.decode().split()

    def daemon_pid(self) -> int | None:
        try:
            return int((self.home / "state" / "daemon.lock").read_text())
        except (OSError, ValueError):
            return None

    def end(self) -> None:
        """Stop the daemon; its guests' agents end with it."""
        if (self.home / "run" / "bangerd.sock").exists():
            self("daemon", "stop")
        for left in self.home.glob("state/vms/*/agent.pid"):
            pid = int(left.read_text())
            try:
                if b"--serve-unix" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.killpg(pid, signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def banger(tmp_path_factory: pytest.TempPathFactory, agent_program: Path) -> Iterator[Instance]:
    """An instance that the module's tests share: they make VMs with names of their own."""
    instance = Instance(tmp_path_factory.mktemp("home"), agent_program)
    yield instance
    instance.end()


@pytest.fixture
def fresh(tmp_path: Path, agent_program: Path) -> Iterator[Instance]:
    """An instance of the test's own; no daemon runs yet."""
    instance = Instance(tmp_path / "home", agent_program)
    yield instance
    instance.end()


@pytest.fixture
def slow(tmp_path: Path, agent_program: Path) -> Iterator[Instance]:
    """No boot comes to its end by itself."""
    instance = Instance(tmp_path / "home", agent_program, BANGER_TEST_BOOT_S="600")
    instance("daemon", "start")
    yield instance
    pid = instance.daemon_pid()
    instance.end()
    if pid is not None and Path(f"/proc/{pid}").exists():
        os.kill(pid, signal.SIGKILL)
