"""A proxy before a registry on loopback: counts what passes, and holds it when a test says so.

It may stand in another network namespace: its sockets are made by a thread that has entered that one. What
is held has been asked for and is half on its way, so that a test can do something in the middle of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_REQUEST = re.compile(rb"^([A-Z]+) (\S+) HTTP/1\.[01]\r?$", re.MULTILINE)
_CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def within(netns: str, work: Callable[[], T]) -> T:
    """What `work` returns when a thread in that network namespace ("" for this one) does it."""

    def enter() -> T:
        if netns:
            descriptor = os.open(f"/run/netns/{netns}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"entering {netns}")
            finally:
                os.close(descriptor)
        return work()

    # a thread of its own, which ends with it: nothing else may run where it has gone
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(enter).result(timeout=60)


class Proxy:
    """requests: `METHOD /path`, in the order asked. received: bytes that came from the registry.

    hold_after: let so many bytes through, then no more; held is set once that is so. release() ends it.
    """

    def __init__(self, port: int, *, netns: str = "") -> None:
        self.requests: list[str] = []
        self.received = 0
        self.hold_after: int | None = None
        self.held = threading.Event()
        self._target = port
        self._netns = netns
        self._free = threading.Event()
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = within(netns, lambda: socket.create_server(("127.0.0.1", 0)))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def forget(self) -> None:
        self.requests.clear()
        self.received = 0

    def hold(self, after: int) -> None:
        self.forget()
        self.held.clear()
        self._free.clear()
        self.hold_after = after

    def release(self) -> None:
        self.hold_after = None
        self._free.set()

    def accept(self) -> None:
        """Until the listener is shut down. Each connection has two threads, which end with it."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = within(self._netns, lambda: socket.create_connection(("127.0.0.1", self._target), 60))
            server.settimeout(None)
            with self._lock:
                self._open += [client, server]
            for source, target, hears in ((client, server, self._asked), (server, client, self._came)):
                threading.Thread(target=_pump, args=(source, target, hears), daemon=True).start()

    def _asked(self, data: bytes) -> None:
        self.requests += [f"{found[1].decode()} {found[2].decode()}" for found in _REQUEST.finditer(data)]

    def _came(self, data: bytes) -> None:
        with self._lock:
            self.received += len(data)
            hold = self.hold_after is not None and self.received > self.hold_after
        if hold:
            self.held.set()
            self._free.wait(120)

    def close(self) -> None:
        self.release()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextlib.contextmanager
def proxy(port: int, *, netns: str = "") -> Iterator[Proxy]:
    """Before the server on that port of 127.0.0.1."""
    made = Proxy(port, netns=netns)
    accepting = threading.Thread(target=made.accept, daemon=True)
    accepting.start()
    try:
        yield made
    finally:
        made.close()
        accepting.join(10)


def _pump(source: socket.socket, target: socket.socket, hears: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(64 << 10):
            hears(data)
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
