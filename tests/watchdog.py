"""Nothing hangs for ever: every test has a time limit, and a test past it fails with all stacks shown.

The limit goes by the folder, or by `@pytest.mark.limit(seconds)`. It covers set-up, call and teardown.
A first alarm raises in the main thread, so that fixtures still clean up; what hangs on after that is
raised again every minute; and what cannot be woken at all (a thread that never ends) ends the process.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

LIMITS_S = {"unit": 300.0, "style": 900.0, "host": 120.0, "guest": 900.0}
"""Guests are emulated here, and a busy neighbour makes any boot five times slower. The first unit test that
needs the sanitized agent compiles it: 5 s of a processor that may be shared by ten."""
DEFAULT_LIMIT_S = 600.0
AGAIN_S = 60.0
LAST_RESORT_S = 300.0


class TestTookTooLong(Exception):
    """The test ran past its limit. What it waited for is the innermost frame of the traceback."""

    __test__ = False


def limit_of(item: pytest.Item) -> float:
    mark = item.get_closest_marker("limit")
    if mark is not None:
        return float(mark.args[0])
    return LIMITS_S.get(folder_of(item), DEFAULT_LIMIT_S)


def folder_of(item: pytest.Item) -> str:
    """The folder right below tests/: unit, host, guest, …"""
    parts = Path(item.path).parts
    below = parts[len(Path(__file__).parent.parts) :]
    return below[0] if len(below) > 1 else ""


@contextmanager
def watching(seconds: float) -> Iterator[None]:
    def alarm(_signum: int, _frame: FrameType | None) -> None:
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
        raise TestTookTooLong(f"the test took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    faulthandler.dump_traceback_later(seconds + LAST_RESORT_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
