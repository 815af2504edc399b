"""The process that carries published ports: from listening sockets of the host to guests' agents.

The daemon starts this file by its path, with one end of a SOCK_SEQPACKET pair as descriptor 0, and says
there, one JSON object a message: `add` (with the listening socket beside it) and `drop`. It binds nothing
and knows nothing else; what it does with a connection is carried.py's. Standard library only: some 30 MiB.
When the daemon ends, in whatever way, the pair ends, and so do all connections and this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import sys
from collections.abc import Coroutine
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

if not __package__:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))

from banger.guest.carried import Port, carry

VERSION = 1
MESSAGE_BYTES = 16 << 10
MOST_OF_VM = 256
"""Connections of one VM; the agent serves 512 in all. Further ones wait in the kernel's queue for an end."""
MOST_IN_ALL = 4096
REPORTS = 20
"""Tracebacks of bugs that are printed; a guest must not fill the disk with them."""


class Carrier:
    """The table that the daemon says, and the connections of each of its ports."""

    def __init__(self, control: socket.socket, *, most_in_all: int) -> None:
        self.stopped: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._control = control
        self._ports: dict[str, asyncio.Task[None]] = {}
        self._of_vm: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._in_all = asyncio.Semaphore(most_in_all)
        self._ended = asyncio.Event()

    def hear(self) -> None:
        """What the daemon has said; its end is ours."""
        while not self.stopped.done():
            try:
                data, descriptors, flags, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 4)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors, flags = b"", [], 0
            if not data:
                self._stop(0)
                return
            listeners = [socket.socket(fileno=descriptor) for descriptor in descriptors]
            try:
                if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    raise ValueError("the message is too long")
                self._obey(json.loads(data), listeners)
            except (ValueError, KeyError, TypeError) as error:
                for listener in listeners:
                    listener.close()
                print(f"what the daemon says is not understood: {error!r}", file=sys.stderr)
                self._stop(2)

    def _obey(self, said: dict[str, Any], listeners: list[socket.socket]) -> None:
        key = str(said["key"])
        if said["v"] != VERSION:
            raise ValueError(f"version {said['v']!r}")
        if said["do"] == "drop":
            if task := self._ports.pop(key, None):
                task.cancel()
        elif said["do"] == "add":
            (listener,) = listeners
            listener.setblocking(False)
            port = Port(listener, said["vm"], said["vm_dir"], said["address"], int(said["port"]))
            self._ports[key] = asyncio.create_task(self._watched(self._serve(port)))
        else:
            raise ValueError(f"{said['do']!r}")

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        """A port that cannot be served any more is a bug: the daemon starts another carrier."""
        try:
            await work
        except Exception:
            self._stop(1)
            raise

    async def _serve(self, port: Port) -> None:
        connections: set[asyncio.Task[None]] = set()
        of_vm = self._of_vm.setdefault(port.vm, asyncio.Semaphore(MOST_OF_VM))
        try:
            with port.listener:
                while True:
                    await _readable(port.listener)
                    with contextlib.ExitStack() as places:
                        for bound in (of_vm, self._in_all):
                            await bound.acquire()
                            places.callback(bound.release)
                        if task := await self._accept(port):
                            connections.add(task)
                            task.add_done_callback(partial(self._over, connections, places.pop_all()))
        finally:
            ending = list(connections)
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    def _over(
        self, connections: set[asyncio.Task[None]], places: contextlib.ExitStack, task: asyncio.Task[None]
    ) -> None:
        connections.discard(task)
        places.close()
        self._ended.set()

    async def _accept(self, port: Port) -> asyncio.Task[None] | None:
        """None when there was nobody after all. CancelledError where the port was shut meanwhile."""
        try:
            client, _ = port.listener.accept()
        except (BlockingIOError, ConnectionError):
            return None
        except OSError as error:
            if not port.listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise asyncio.CancelledError from None  # the daemon has shut it, and will say so
            print(f"accept: {error}", file=sys.stderr)
            self._ended.clear()
            with contextlib.suppress(TimeoutError):  # out of descriptors or memory: until somebody has ended
                await asyncio.wait_for(self._ended.wait(), 1.0)
            return None
        client.setblocking(False)
        return asyncio.create_task(carry(client, port))

    def _stop(self, status: int) -> None:
        if not self.stopped.done():
            self.stopped.set_result(status)

    async def close(self) -> None:
        tasks = list(self._ports.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _readable(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    news: asyncio.Future[None] = loop.create_future()
    loop.add_reader(listener, _resolve, news)
    try:
        await news
    finally:
        loop.remove_reader(listener)


def _resolve(news: asyncio.Future[None]) -> None:
    if not news.done():
        news.set_result(None)


def descriptor_limit() -> int:
    """How many connections may be carried at once, two descriptors each, after asking for all we may have."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_IN_ALL if now == resource.RLIM_INFINITY else max(8, min(MOST_IN_ALL, now // 4))


async def serve(control: socket.socket) -> int:
    """Until the daemon's end of control is closed; the status to exit with."""
    loop = asyncio.get_running_loop()
    reports = 0

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal reports
        reports += 1
        if reports <= REPORTS:
            loop.default_exception_handler(context)

    loop.set_exception_handler(report)
    control.setblocking(False)
    carrier = Carrier(control, most_in_all=descriptor_limit())
    loop.add_reader(control, carrier.hear)
    try:
        return await carrier.stopped
    finally:
        loop.remove_reader(control)
        await carrier.close()


def main() -> int:
    with socket.socket(fileno=0) as control:
        return asyncio.run(serve(control))


if __name__ == "__main__":
    sys.exit(main())
