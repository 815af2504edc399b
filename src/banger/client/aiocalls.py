"""The SDK's blocking calls, each in a thread of its own that ends with the call; cancelled, it ends at once.

A thread a call, and no pool: any number of calls may be under way, none waits for another's thread. After a
cancellation the thread's sockets are shut, and what it had made is undone before the cancellation goes on.
Used by client/aio.py and its neighbours. Nothing is left after a crash.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from banger.client.calls import Call, CallAborted, calling
from banger.client.values import OnProgress, Progress

T = TypeVar("T")
QUEUED = 8


async def in_thread(function: Callable[[], T], *, discard: Callable[[T], object] | None = None) -> T:
    """What the function gives. discard: what to do with that when nobody waits for it any more."""
    call = Call()
    future = _start(function, call)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        call.abort()
        ending = asyncio.ensure_future(_ended(future, discard))
        _ending.add(ending)
        ending.add_done_callback(_ending.discard)
        await asyncio.shield(ending)
        raise


_ending: set[asyncio.Future[None]] = set()
"""Undoings that go on although even the wait for them was cancelled."""


async def _ended(future: asyncio.Future[T], discard: Callable[[T], object] | None) -> None:
    try:
        value = await future
    except BaseException:
        return
    if discard is not None:
        undo = discard
        with suppress(Exception):
            await _start(lambda: undo(value), Call())


def _start(function: Callable[[], T], call: Call) -> asyncio.Future[T]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def give(value: T) -> None:
        if not future.done():
            future.set_result(value)

    def fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def run() -> None:
        try:
            with calling(call):
                value = function()
        except CallAborted as aborted:
            error: BaseException = RuntimeError("a call that was cancelled")
            error.__cause__ = aborted
            settle: Callable[[], None] = lambda: fail(error)  # noqa: E731
        except BaseException as failure:
            caught = failure
            settle = lambda: fail(caught)  # noqa: E731
        else:
            settle = lambda: give(value)  # noqa: E731
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle)

    threading.Thread(target=run, name="banger-call", daemon=True).start()
    return future


def in_loop(progress: OnProgress | None) -> OnProgress | None:
    """The same callback, called in this event loop from whatever thread."""
    if progress is None:
        return None
    loop, tell = asyncio.get_running_loop(), progress

    def pass_on(said: Progress) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, said)

    return pass_on


async def iterate(make: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
    """What a blocking iterator gives, from one thread, a few pieces ahead."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[T] = asyncio.Queue(QUEUED)
    stopped = threading.Event()

    def run() -> None:
        for piece in make():
            if stopped.is_set():
                return
            asyncio.run_coroutine_threadsafe(queue.put(piece), loop).result()

    task = asyncio.ensure_future(in_thread(run))
    try:
        while True:
            getter = asyncio.ensure_future(queue.get())
            try:
                await asyncio.wait({getter, task}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                getter.cancel()
            if getter.done() and not getter.cancelled():
                yield getter.result()
                continue
            while not queue.empty():
                yield queue.get_nowait()
            await task
            return
    finally:
        stopped.set()
        while not queue.empty():
            queue.get_nowait()
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
