"""The process that carries published ports (guest/carrier.py): started, told, watched and started again.

One of a daemon's, there as long as it has a port to serve. The sockets stay open here too, so that nobody
is refused while a carrier that died is replaced; its connections are lost. It hears the daemon's end as the
end of their socket pair, and the next daemon waits for it (`settle`) before it binds the same ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections import deque
from typing import NamedTuple

from banger.errors import BangerError
from banger.guest import carrier
from banger.model.records import ProcessIdentity
from banger.system import process, tcplisten
from banger.system.exits import ExitWatch
from banger.system.lockorder import unheld
from banger.vm.logtail import tail
from banger.vm.planner import CARRIER_ROLE

log = logging.getLogger(__name__)

LOG = "ports.log"
END_S = 3.0
"""It hangs up within one second; then it is killed."""
SEND_S = 10.0
PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
HEALTHY_S = 60.0
"""One that lived so long is replaced at once; else the pause doubles."""
LAUNCHES_KEPT = 16


class Served(NamedTuple):
    """listener is the carrier's from `serve` on. vm: whose connections count together."""

    listener: socket.socket
    vm: str
    vm_dir: str
    address: str
    port: int


class CarrierProcess:
    def __init__(self, folder: str, *, program: str = carrier.__file__, pause_s: float = PAUSE_S) -> None:
        self._folder = folder
        self._program = program
        self._first_pause_s = pause_s
        self._table: dict[str, Served] = {}
        self._unsaid: deque[tuple[str, str]] = deque()
        self._news = asyncio.Event()
        self._gone = asyncio.Event()
        self._gone.set()
        self._supervisor: asyncio.Task[None] | None = None
        self._launched: deque[ProcessIdentity] = deque(maxlen=LAUNCHES_KEPT)
        self.problem = ""
        """Why nothing is carried just now; "" when all is well."""

    @property
    def launched(self) -> frozenset[ProcessIdentity]:
        """Those of this daemon, the last of which may live."""
        return frozenset(self._launched)

    def serve(self, key: str, served: Served) -> None:
        """From now on, and through whatever happens to the process, until `withdraw`."""
        if key in self._table:
            raise RuntimeError(f"{key} is served already")
        self._table[key] = served
        self._say("add", key)
        self._gone.clear()
        if self._supervisor is None or self._supervisor.done():
            self._supervisor = asyncio.create_task(self._supervise(), name="carrier", context=unheld())

    def withdraw(self, key: str) -> None:
        """The port is free when this returns; its connections end."""
        if served := self._table.pop(key, None):
            tcplisten.shut(served.listener)
            self._say("drop", key)

    async def settle(self) -> None:
        """Before anything is bound: an earlier daemon's carrier ends with it; one that does not is killed."""
        before = process.read_pid_file(f"{self._folder}/{CARRIER_ROLE}.pid", role=CARRIER_ROLE)
        if before is not None and before not in self._launched:
            await self._end(before)

    async def rest(self) -> None:
        """If nothing is served any more: return when the process is gone."""
        if not self._table:
            await self._gone.wait()

    async def close(self) -> None:
        for key in list(self._table):
            self.withdraw(key)
        await self.rest()

    def _say(self, what: str, key: str) -> None:
        self._unsaid.append((what, key))
        self._news.set()

    async def _supervise(self) -> None:
        pause_s = self._first_pause_s
        while self._table:
            began = time.monotonic()
            try:
                why = await self._live()
            except (OSError, BangerError) as error:
                why = str(error)
            finally:
                self._gone.set()
            if not why:
                continue
            if time.monotonic() - began >= HEALTHY_S:
                pause_s = self._first_pause_s
            self.problem = f"the process that carries published ports ended ({why})"
            log.warning("%s; the next starts in %.1f s\n%s", self.problem, pause_s, self._last_words())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    while self._table:
                        self._news.clear()
                        await self._news.wait()
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self.problem = ""

    async def _live(self) -> str:
        """One process, from its launch until it has ended or nothing is left to serve (""). How it ended."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                identity = self._launch(theirs)
            ours.setblocking(False)
            watch = ExitWatch(identity)
            ended = asyncio.create_task(watch.wait(), name="carrier's end")
            try:
                self._gone.clear()
                self._unsaid = deque(("add", key) for key in self._table)
                self.problem = ""
                while self._table and not ended.done():
                    while self._unsaid and not ended.done():
                        await self._tell(ours, *self._unsaid.popleft(), ended=ended)
                    self._news.clear()
                    if self._table and not self._unsaid:
                        news = asyncio.create_task(self._news.wait())
                        await asyncio.wait({ended, news}, return_when=asyncio.FIRST_COMPLETED)
                        news.cancel()
                if not ended.done():
                    return ""
                status = ended.result()
                return "nobody knows how" if status is None else f"status {status}"
            finally:
                ours.close()
                ended.cancel()
                watch.close()
                await self._end(identity)

    def _launch(self, control: socket.socket) -> ProcessIdentity:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._folder}/{LOG}")
        identity = process.launch(
            [sys.executable, "-I", "-S", self._program],
            role=CARRIER_ROLE,
            cwd=self._folder,
            stdout=LOG,
            stdin=control.fileno(),
        )
        self._launched.append(identity)
        return identity

    async def _tell(
        self, ours: socket.socket, what: str, key: str, *, ended: asyncio.Task[int | None]
    ) -> None:
        """Raises OSError (TimeoutError is one) where it does not listen any more."""
        served = self._table.get(key)
        message: dict[str, object] = {"v": carrier.VERSION, "do": what, "key": key}
        descriptors = []
        if what == "add":
            if served is None:
                return  # withdrawn meanwhile
            message |= {
                "vm": served.vm,
                "vm_dir": served.vm_dir,
                "address": served.address,
                "port": served.port,
            }
            descriptors = [served.listener.fileno()]
        data = json.dumps(message).encode()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SEND_S):
            while not ended.done():
                try:
                    socket.send_fds(ours, [data], descriptors)
                    return
                except BlockingIOError:
                    room: asyncio.Future[int | None] = loop.create_future()
                    loop.add_writer(ours, _resolve, room)
                    try:
                        await asyncio.wait({ended, room}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        loop.remove_writer(ours)

    async def _end(self, identity: ProcessIdentity) -> None:
        if await process.wait_gone(identity, timeout_s=END_S):
            return
        log.warning("the process that carries published ports (pid %d) does not end: killed", identity.pid)
        process.send_signal(identity, 9)
        await process.wait_gone(identity, timeout_s=END_S)

    def _last_words(self) -> str:
        return tail(f"{self._folder}/{LOG}", lines=12)


def _resolve(future: asyncio.Future[int | None]) -> None:
    if not future.done():
        future.set_result(None)
