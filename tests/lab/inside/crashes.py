"""Where a daemon in the lab kills itself: before and after each step, and each call that makes or removes a
loop, a device-mapper target or the file system on it.

The steps' points are the product's own; the calls are wrapped here, in the forked daemon, by their names.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from banger.disk import dmsnapshot
from banger.system import devicemapper, loops

Point = tuple[str, int]
"""(name, the how-manieth of that name in an operation, from 1)."""

CALLS: tuple[tuple[ModuleType, str, str], ...] = (
    (loops, "attach", "loop:attach"),
    (loops, "detach", "loop:detach"),
    (devicemapper, "create", "dm:create"),
    (devicemapper, "remove", "dm:remove"),
    (dmsnapshot, "run", "dm:grow"),
    (dmsnapshot, "_no_longer_fresh", "dm:fresh"),
)


class CrashPoints:
    """The product's `crash_point`, for the daemon itself."""

    def __init__(self) -> None:
        self._passed: list[Point] = []
        self._times: Counter[str] = Counter()
        self._armed: Point | None = None

    def __call__(self, name: str) -> None:
        self._times[name] += 1
        point = (name, self._times[name])
        self._passed.append(point)
        if point == self._armed:
            os.kill(os.getpid(), signal.SIGKILL)

    def answer(self, what: str, name: str = "", nth: str = "0") -> str:
        if what != "points":
            self._passed.clear()
            self._times.clear()
            self._armed = (name, int(nth)) if what == "arm" else None
        return json.dumps(self._passed)


def watch_block_devices(crash: CrashPoints) -> None:
    """Make crash points of the calls. For a process that is a daemon and nothing else."""
    for module, name, point in CALLS:
        call = getattr(module, name)
        wrap = _around_async if asyncio.iscoroutinefunction(call) else _around
        setattr(module, name, wrap(call, point, crash=crash))


def _around(call: Callable[..., object], point: str, *, crash: CrashPoints) -> Callable[..., object]:
    @functools.wraps(call)
    def wrapped(*words: object, **named: object) -> object:
        crash(f"{point}:before")
        result = call(*words, **named)
        crash(f"{point}:after")
        return result

    return wrapped


def _around_async(call: Callable[..., object], point: str, *, crash: CrashPoints) -> Callable[..., object]:
    @functools.wraps(call)
    async def wrapped(*words: object, **named: object) -> object:
        crash(f"{point}:before")
        result = await call(*words, **named)  # type: ignore[misc]
        crash(f"{point}:after")
        return result

    return wrapped


def quick_to_ask(program: str) -> str:
    """The fake, but a shell says its version: each daemon asks, and Python takes long to start in the lab."""
    path = Path(program)
    fake = path.with_suffix(".py")
    path.rename(fake)
    interpreter = fake.read_text().partition("\n")[0].removeprefix("#!")
    version = subprocess.run([str(fake), "--version"], capture_output=True, check=True, text=True).stdout
    path.write_text(
        "#!/bin/sh\n"
        f'if [ "$*" = --version ]; then echo "{version.strip()}"; exit; fi\n'
        f'exec {interpreter} {fake} "$@"\n'
    )
    path.chmod(0o755)
    return program
