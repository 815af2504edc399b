"""Leases on the VMs that are to end with this process, held by one thread that sleeps.

A lease is a connection to the daemon: it ends when this process does, however that happens, and the daemon
deletes the VM within ten seconds. A daemon that is replaced or restarted is asked again, once a second. A
forked child lets go of its copies at once. Used by client/sdk.py.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
import weakref

from banger.client.client import Client
from banger.client.http import Connection
from banger.config.paths import Paths
from banger.errors import BangerError, ErrorCode

AGAIN_S = 1.0
JOIN_S = 5.0


class Leases:
    """hold() and release(), from any thread."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._held: dict[str, Connection | None] = {}
        """By VM id; None while there is no daemon that would hold it."""
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None
        _all.add(self)

    def hold(self, client: Client, vm_id: str) -> None:
        connection = client.lease(vm_id)
        connection.socket.setblocking(False)
        with self._lock:
            self._held[vm_id] = connection
            if self._thread is None:
                self._wake = socket.socketpair()
                self._thread = threading.Thread(
                    target=self._run, args=(self._wake[1],), name="banger-leases", daemon=True
                )
                self._thread.start()
            self._rouse()

    def release(self, vm_id: str) -> None:
        with self._lock:
            connection = self._held.pop(vm_id, None)
            self._rouse()
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Let go of all, and end the thread."""
        with self._lock:
            held, self._held = self._held, {}
            thread, self._thread = self._thread, None
            wake, self._wake = self._wake, None
        for connection in held.values():
            if connection is not None:
                connection.close()
        if wake is not None:
            wake[0].close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_S)

    def _rouse(self) -> None:
        if self._wake is not None:
            with contextlib.suppress(BlockingIOError):
                self._wake[0].send(b"!", socket.MSG_DONTWAIT)

    def _run(self, wake: socket.socket) -> None:
        """Until the other end of `wake` is closed."""
        next_try = 0.0
        with wake:
            while True:
                with self._lock:
                    held = dict(self._held)
                poll = select.poll()
                poll.register(wake, select.POLLIN)
                by_fd: dict[int, str] = {}
                for vm_id, connection in held.items():
                    if connection is not None and (fd := connection.socket.fileno()) >= 0:
                        by_fd[fd] = vm_id
                        poll.register(fd, select.POLLIN)
                lost = [vm_id for vm_id, connection in held.items() if connection is None]
                wait_s = max(0.0, next_try - time.monotonic()) if lost else None
                ready = dict(poll.poll(None if wait_s is None else 1000 * wait_s))
                if wake.fileno() in ready and not wake.recv(4096):
                    return
                for fd in ready:
                    if fd in by_fd:
                        self._hear(by_fd[fd], held[by_fd[fd]])
                if lost and time.monotonic() >= next_try:
                    next_try = time.monotonic() + AGAIN_S
                    for vm_id in lost:
                        self._take_again(vm_id)

    def _hear(self, vm_id: str, connection: Connection | None) -> None:
        """A heartbeat, or the end of the daemon."""
        if connection is None:
            return
        try:
            if connection.socket.recv(4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        connection.close()
        with self._lock:
            if self._held.get(vm_id) is connection:
                self._held[vm_id] = None

    def _take_again(self, vm_id: str) -> None:
        """Of whatever daemon there is by now; none is started."""
        try:
            with Client(self._paths, autostart=False, version="") as quiet:
                connection = quiet.lease(vm_id)
        except BangerError as error:
            if error.code is ErrorCode.NOT_FOUND:
                with self._lock:
                    self._held.pop(vm_id, None)
            return
        connection.socket.setblocking(False)
        with self._lock:
            if vm_id in self._held:
                self._held[vm_id] = connection
                return
        connection.close()

    def forget(self) -> None:
        """In a forked child: the parent holds them, and its thread is not here."""
        for connection in self._held.values():
            if connection is not None:
                connection.close()
        self._held = {}
        self._thread = self._wake = None
        self._lock = threading.Lock()


_all: weakref.WeakSet[Leases] = weakref.WeakSet()


def _forget_all() -> None:
    for leases in list(_all):
        leases.forget()


os.register_at_fork(after_in_child=_forget_all)
