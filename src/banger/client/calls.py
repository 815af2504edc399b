"""Connections to the daemon for many callers at once, and how a call is ended from another thread.

Each call borrows a low-level Client that nobody else has meanwhile, so that the SDK may be used by several
threads. A thread that has set a Call for itself (client/aio.py) can be unblocked by Call.abort. In a forked
child nothing works but closing. Standard library only; nothing is left after a crash.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from banger.client.client import Client
from banger.client.http import Connection
from banger.config.paths import Paths
from banger.errors import BangerError, ErrorCode

MAX_IDLE = 8
"""Idle connections to the daemon that are kept; more callers than that at once each pay for a new one."""


class CallAborted(BaseException):
    """Somebody else ended this call; no Exception, so that nothing on the way takes it for a failure."""


class Call:
    """One blocking call in a thread of its own, and the sockets that it waits for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._aborted = False
        self._held = 0

    def abort(self) -> None:
        """From any thread: the call's waits end with CallAborted, now or where it is no longer held."""
        with self._lock:
            self._aborted = True
            sockets = [] if self._held else self._sockets
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is done in here is done to its end."""
        with self._lock:
            self._held += 1
        try:
            yield
        finally:
            with self._lock:
                self._held -= 1

    def check(self) -> None:
        with self._lock:
            if self._aborted and not self._held:
                raise CallAborted

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._sockets = [each for each in self._sockets if each.fileno() >= 0]
            self._sockets.append(connection)
        try:
            self.check()
        except CallAborted:
            connection.close()
            raise


class _Current(threading.local):
    call: Call | None = None


_current = _Current()


@contextmanager
def calling(call: Call) -> Iterator[None]:
    """This thread's requests belong to the call. Any error after an abort is CallAborted."""
    before, _current.call = _current.call, call
    try:
        yield
    except Exception as error:
        try:
            call.check()
        except CallAborted as aborted:
            raise aborted from error
        raise
    finally:
        _current.call = before


@contextmanager
def held() -> Iterator[None]:
    """What is done in here is done to its end, also when somebody aborts the call."""
    if _current.call is None:
        yield
        return
    with _current.call.held():
        yield


class CallClient(Client):
    """A low-level Client whose sockets are known to the call that borrows it."""

    call: Call | None = None

    def _connection(self) -> Connection:
        if self.call is None:
            return super()._connection()
        self.call.check()
        connection = super()._connection()
        self.call.opened(connection.socket)
        return connection

    def opened(self, connection: socket.socket) -> None:
        if self.call is not None:
            self.call.opened(connection)


class Calls:
    """Low-level clients of one instance, lent one by one."""

    def __init__(self, paths: Paths, *, autostart: bool) -> None:
        self.paths: Paths = paths
        self._autostart = autostart
        self._lock = threading.Lock()
        self._idle: list[CallClient] = []
        self._closed = False
        self._pid = os.getpid()

    @property
    def is_ours(self) -> bool:
        """False in a forked child."""
        return os.getpid() == self._pid

    @contextmanager
    def client(self) -> Iterator[CallClient]:
        """The caller's alone until the context ends."""
        if not self.is_ours:
            raise BangerError(
                ErrorCode.WRONG_STATE,
                "this Client belongs to the process that made it",
                hint="make a Client in the forked process",
            )
        with self._lock:
            if self._closed:
                raise BangerError(ErrorCode.WRONG_STATE, "this Client is closed")
            client = self._idle.pop() if self._idle else None
        if client is None:
            client = CallClient(self.paths, autostart=self._autostart)
        client.call = _current.call
        try:
            yield client
        finally:
            client.call = None
            with self._lock:
                keep = not self._closed and len(self._idle) < MAX_IDLE
                if keep:
                    self._idle.append(client)
            if not keep:
                client.close()

    def close(self) -> None:
        """Calls that are under way go on."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()
