"""A guest's agent without a guest: a server on a v.sock that does the CONNECT handshake and then a script."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from banger.model.records import VMRecord
from banger.system.listeners import listens_on

Script = Callable[[socket.socket], None]
"""What happens on one connection after the handshake; the connection is closed after it."""


class FakeGuestSocket:
    """Listens on `path` in a thread of its own until closed."""

    def __init__(self, path: str, script: Script) -> None:
        self._script = script
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder, name = path.rsplit("/", 1)
        folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        self._listener.bind(f"/proc/self/fd/{folder_fd}/{name}")
        os.close(folder_fd)
        self._listener.listen(8)
        self.failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    line = b""
                    while not line.endswith(b"\n"):
                        byte = connection.recv(1)
                        if not byte:
                            break
                        line += byte
                    if line == b"CONNECT 1024\n":
                        connection.sendall(b"OK 5\n")
                        self._script(connection)
                except OSError:
                    pass
                except BaseException as error:
                    self.failures.append(error)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=5)
        if self.failures:
            raise self.failures[0]


def serve_agent(program: str, folder: Path) -> subprocess.Popen[bytes]:
    """The real agent as an ordinary process: when this returns it listens on `folder`/v.sock."""
    with (folder / "agent.log").open("wb") as log:
        running = subprocess.Popen(
            [program, "--serve-unix", "v.sock"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": "/usr/bin:/bin"},
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    while not listens_on(running.pid, "v.sock"):  # its file is there a moment sooner
        assert time.monotonic() < deadline, "the agent does not listen"
        time.sleep(0.005)
    return running


class HostAgents:
    """The real agent as an ordinary process for each running VM. Without a program guests are mute."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, record: VMRecord) -> None:
        if not self._program:
            return
        # relative, as a guest socket's path may be too long for a socket address
        folder = Path(record.runtime.vm_dir)
        for stale in folder.glob("v.sock*"):
            if stale.is_socket():  # what sessions left stays, as on a guest's disk
                stale.unlink()
        self._running[record.id] = serve_agent(self._program, folder)
        # for whoever cleans up after a daemon that was killed
        (folder / "agent.pid").write_text(str(self._running[record.id].pid))

    def stop(self, record: VMRecord) -> None:
        process = self._running.pop(record.id, None)
        if process is not None:
            end(process)

    def stop_all(self) -> None:
        for process in self._running.values():
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """The agent and its children: it is the leader of their session."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
