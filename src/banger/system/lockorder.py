"""The order in which the daemon's locks are taken, asserted in debug runs (ARCHITECTURE.md, "Locks").

A lock has a rank; a task may take one only while every lock that it holds, or that it works under (its
parent's, as steps of a start do), has a lower rank. Then no two tasks can wait for each other. Checked
where BANGER_DEBUG_LOCKS is set, as the test suite does: a violation raises before the lock is waited for, on
every run, not only on the run that would have hung. Any room may use it. Nothing is left after a crash.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from enum import IntEnum
from types import TracebackType

VARIABLE = "BANGER_DEBUG_LOCKS"


class Rank(IntEnum):
    """From the first to be taken to the last. One task holds at most one of a rank."""

    VM = 1
    RESERVATION = 2
    IMAGE = 3
    KERNEL = 4
    TOOL = 5
    DOWNLOAD = 6
    LEAF = 7


class LockOrderViolation(RuntimeError):
    """A bug: two tasks doing this could wait for each other for ever."""


class Hold:
    """A lock that is held or waited for. A task that outlives it inherited it, and does not hold it."""

    __slots__ = ("alive", "name", "rank")

    def __init__(self, rank: Rank, name: str) -> None:
        self.rank = rank
        self.name = name
        self.alive = True

    def __str__(self) -> str:
        return f"the {self.rank.name.lower()} lock {self.name}"


_held: contextvars.ContextVar[tuple[Hold, ...]] = contextvars.ContextVar("held_locks", default=())


def take(rank: Rank, name: str) -> Hold | None:
    """Before a lock is waited for; the result goes to `drop` when it is free again. None in ordinary runs."""
    if not os.environ.get(VARIABLE):
        return None
    held = tuple(hold for hold in _held.get() if hold.alive)
    taken = Hold(rank, name)
    above = [str(hold) for hold in held if hold.rank >= rank]
    if above:
        raise LockOrderViolation(f"{taken} is taken under {', '.join(above)}")
    _held.set((*held, taken))
    return taken


def drop(hold: Hold | None) -> None:
    if hold is not None:
        hold.alive = False


def unheld() -> contextvars.Context:
    """This context, for a task that does not work under the locks of whoever creates it."""
    context = contextvars.copy_context()
    context.run(_held.set, ())
    return context


class OrderedLock:
    """An asyncio.Lock with a rank: `async with`."""

    def __init__(self, rank: Rank, name: str) -> None:
        self._rank = rank
        self._name = name
        self._lock = asyncio.Lock()
        self._hold: Hold | None = None

    def locked(self) -> bool:
        return self._lock.locked()

    async def __aenter__(self) -> None:
        hold = take(self._rank, self._name)
        try:
            await self._lock.acquire()
        except BaseException:
            drop(hold)
            raise
        self._hold = hold

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        hold, self._hold = self._hold, None
        drop(hold)
        self._lock.release()
