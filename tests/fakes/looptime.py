"""Time as the event loop has it, moved on by hand: a deadline passes when a test says so, and not before."""

from __future__ import annotations

import asyncio


def pass_time(seconds: float) -> None:
    """The running loop's timers that are due in so many seconds are due now. Its clock stays ahead."""
    loop = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + seconds  # type: ignore[method-assign]
