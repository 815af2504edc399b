"""The tap pool: idle taps kept ready, so that a start finds its tap made (SPEC §4).

Owns the `tap-pool-<n>` devices of this daemon's life and the index they are numbered by. Last in, first
out; acquiring does not warm, a successful delete does, in the background: several at once, never twice at
the same time, ended by the first failure (a warning) and by close. After a crash the idle ones are found by
their mark and removed at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable

log = logging.getLogger(__name__)

POOL_PREFIX = "tap-pool-"
_NAME = re.compile(rf"{re.escape(POOL_PREFIX)}(0|[1-9][0-9]{{0,5}})")
_AT_ONCE = 4

MakeTap = Callable[[str], Awaitable[None]]


def pool_index(name: str) -> int | None:
    """The n of tap-pool-n; None for any other name, a bad suffix included."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


class TapPool:
    def __init__(self, size: int, *, make: MakeTap, delete: MakeTap) -> None:
        """make and delete: of an idle tap by name, idempotent."""
        self._size = size
        self._make = make
        self._delete = delete
        self._idle: list[str] = []
        self._coming: set[str] = set()
        self._next = 0
        self._warming: asyncio.Task[None] | None = None
        self._closed = False

    def seed(self, names: Iterable[str]) -> None:
        """Start numbering above every index in use."""
        indexes = [index for name in names if (index := pool_index(name)) is not None]
        self._next = max([self._next - 1, *indexes]) + 1

    def names(self) -> frozenset[str]:
        """Idle taps, and those that are being made."""
        return frozenset((*self._idle, *self._coming))

    def take(self) -> str | None:
        return self._idle.pop() if self._idle else None

    def put_back(self, name: str) -> bool:
        """Keep a released pool tap; False when it is none or the pool is full: then the caller deletes it."""
        if self._closed or pool_index(name) is None or len(self._idle) + len(self._coming) >= self._size:
            return False
        if name not in self._idle:
            self._idle.append(name)
        return True

    def warm(self) -> None:
        """Fill up in the background."""
        if self._closed or self._size == 0 or (self._warming is not None and not self._warming.done()):
            return
        self._warming = asyncio.create_task(self._fill(), name="tap pool")

    async def settled(self) -> None:
        """Wait until a warming that is under way has ended."""
        if self._warming is not None:
            await asyncio.gather(self._warming, return_exceptions=True)

    async def drain(self) -> None:
        """Delete every idle tap; a warming under way is ended first. Failures are logged."""
        await self._stop_warming()
        idle, self._idle = self._idle, []
        for name in idle:
            try:
                await self._delete(name)
            except Exception as error:
                log.warning("pool tap %s stays: %s", name, error)

    async def close(self) -> None:
        self._closed = True
        await self._stop_warming()

    async def _stop_warming(self) -> None:
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
            self._warming = None

    async def _fill(self) -> None:
        while (missing := self._size - len(self._idle)) > 0:
            batch = [f"{POOL_PREFIX}{self._next + i}" for i in range(min(missing, _AT_ONCE))]
            self._next += len(batch)
            self._coming.update(batch)
            try:
                async with asyncio.TaskGroup() as tasks:
                    for name in batch:
                        tasks.create_task(self._make_one(name))
            except ExceptionGroup as failures:
                log.warning("the tap pool stops warming: %s", failures.exceptions[0])
                return
            finally:
                self._coming.difference_update(batch)

    async def _make_one(self, name: str) -> None:
        await self._make(name)
        self._idle.append(name)
