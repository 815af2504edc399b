"""The daemon's socket and the lock that says whose it is.

Owns: STATE_DIR/daemon.lock (flocked for the daemon's life; its text is the pid) and RUNTIME_DIR/bangerd.sock
(0600, in a folder 0700). Only the holder of the lock may replace a stale socket. After a crash both files
stay; the kernel has dropped the lock, and the next daemon removes the socket.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from typing import Any

from banger.config.instance import private_folder
from banger.errors import BangerError, ErrorCode

LOCK_WAIT_S = 10.0
"""For a daemon that is on its way out; the lock is tried again every 50 ms (flock knows no deadline)."""
BACKLOG = 128

_FORBIDDEN = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    b'{"code":"permission_denied","brief":"this socket is another user\'s"}'
)


class StateLock:
    """The flock on the state folder: one daemon per instance."""

    def __init__(self, state_dir: str) -> None:
        self._path = f"{state_dir}/daemon.lock"
        self._fd = -1

    async def acquire(self, wait_s: float = LOCK_WAIT_S) -> None:
        """BUSY with the holder's pid when it is not free in time."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        deadline = time.monotonic() + wait_s
        while not self._try():
            if time.monotonic() > deadline:
                holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
                self.release()
                raise BangerError(
                    ErrorCode.BUSY,
                    f"another banger daemon (pid {holder or 'unknown'}) holds {os.path.dirname(self._path)}",
                    hint="stop it with `banger daemon stop`",
                )
            await asyncio.sleep(0.05)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def peer_uid(connection: socket.socket) -> int:
    """Who connected (SO_PEERCRED: the peer's uid at the time of its connect)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    _pid, uid, _gid = struct.unpack("iII", raw)
    return int(uid)


def may_connect(uid: int) -> bool:
    """The daemon's own user, and root."""
    return uid in (0, os.getuid())


class OwnersSocket(socket.socket):
    """A listening socket that turns strangers away before a byte of theirs is read."""

    allowed: Callable[[int], bool] = staticmethod(may_connect)

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if self.allowed(peer_uid(connection)):
            return connection, address
        try:
            connection.setblocking(False)
            connection.send(_FORBIDDEN)
        except OSError:
            pass
        connection.close()
        # asyncio's accept loop takes this as "nobody there any more" and goes on
        raise ConnectionAbortedError(errno.ECONNABORTED, "not the owner of this daemon")


def bind_socket(path: str, *, socket_type: type[OwnersSocket] = OwnersSocket) -> OwnersSocket:
    """Listen on `path`, mode 0600. Call with the StateLock held: whatever is there is stale then.

    The path may be longer than the 107 bytes of a socket address: its folder's descriptor stands for it.
    """
    folder, name = os.path.split(path)
    private_folder(folder)
    folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            existing = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISSOCK(existing.st_mode):
                raise BangerError(
                    ErrorCode.HOST_UNSUITABLE,
                    f"{path} is in the way",
                    hint="it is not a socket: move it away",
                )
            os.unlink(name, dir_fd=folder_fd)
        listener = socket_type(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(f"/proc/self/fd/{folder_fd}/{name}")
            os.chmod(name, 0o600, dir_fd=folder_fd)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise BangerError(
                ErrorCode.HOST_UNSUITABLE, f"cannot listen on {path}: {error.strerror or error}"
            ) from error
        return listener
    finally:
        os.close(folder_fd)


def remove_socket(path: str) -> None:
    """At the end; the StateLock is still held, so it is ours."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
