"""Unix sockets at paths of any length.

A socket address holds 107 bytes, a VM's folder may lie deeper than that. A longer path is reached through
/proc/self/fd/N of an O_PATH descriptor of its folder, which is open only during connect or bind.
Standard library only, and asyncio only where it is asked for: the CLI may import this.
After a crash: a bound socket's file stays behind; `bind_listener(replace=True)` takes its place.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Iterator

ADDRESS_BYTES = 107
RETRY_S = 0.005


@contextlib.contextmanager
def unix_address(path: str) -> Iterator[str]:
    """An address for `path`, as long as the context lasts. Raises OSError when its folder is not there."""
    if len(os.fsencode(path)) <= ADDRESS_BYTES:
        yield path
        return
    folder, name = os.path.split(path)
    folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder_fd}/{name}"
    finally:
        os.close(folder_fd)


def connect(path: str, *, timeout_s: float) -> socket.socket:
    """A connected stream socket with that timeout set. Raises OSError (TimeoutError is one)."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        with unix_address(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


async def connect_async(path: str, *, timeout_s: float) -> socket.socket:
    """A connected, non-blocking stream socket. Raises OSError (TimeoutError is one)."""
    import asyncio

    deadline = time.monotonic() + timeout_s
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        with unix_address(path) as address:
            while True:
                try:
                    connection.connect(address)
                except BlockingIOError:
                    # The backlog is full. The kernel tells nobody when that changes (the socket is not
                    # even "connecting", so asyncio's own connect would take it for connected).
                    if time.monotonic() >= deadline:
                        raise TimeoutError(f"{path}: nobody accepts the connection") from None
                    await asyncio.sleep(RETRY_S)
                else:
                    return connection
    except BaseException:
        connection.close()
        raise


def bind_listener(
    path: str, *, backlog: int = 128, mode: int = 0o600, replace: bool = False
) -> socket.socket:
    """A listening, non-blocking stream socket at path.

    replace: remove a socket that is there already; anything else there is an error (OSError), always.
    """
    if replace:
        remove_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with unix_address(path) as address:
            listener.bind(address)
        os.chmod(path, mode)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def remove_socket(path: str) -> None:
    """Remove the socket at path if there is one; anything else there is an error (OSError)."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise FileExistsError(f"{path} is there and is no socket")
    os.unlink(path)
