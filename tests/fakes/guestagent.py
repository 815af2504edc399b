"""A guest's agent without a guest: a server on a v.sock that does the CONNECT handshake and then a script."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

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
