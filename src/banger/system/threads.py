"""Blocking work in a thread that its caller outlives: asyncio.to_thread, but for cancelling.

Used by whoever lets a thread work on descriptors or folders that it closes or removes. Nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


async def in_thread(work: Callable[[], Result], *, stop: Callable[[], None] | None = None) -> Result:
    """As asyncio.to_thread, but a cancelled caller goes on only when the thread has ended.

    The thread works on descriptors that the caller closes: by then their numbers could be others'. stop:
    makes the thread end soon.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # what it ran into does not matter any more
        raise
