"""A daemon with fake services on a real socket, in the test's own loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from banger.config.paths import Paths, resolve_paths
from banger.config.settings import Settings
from banger.daemon import leases
from banger.daemon.listener import OwnersSocket
from banger.daemon.main import Timings, serve
from tests.fakes.services import FakeWorld


class Quick(Timings):
    heartbeat_s = 0.05


class Clock:
    """The leases' own: it stands still until a test moves it, however long the test takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(leases, "time", made)
    monkeypatch.setattr(leases, "ROUND_S", 0.01)
    return made


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return resolve_paths({"BANGER_HOME": str(tmp_path / "home")})


@pytest.fixture
def world(paths: Paths) -> FakeWorld:
    return FakeWorld(paths)


@asynccontextmanager
async def running(
    paths: Paths, world: FakeWorld, *, version: str = "1.2.3", socket_type: type[OwnersSocket] = OwnersSocket
) -> AsyncIterator[asyncio.Event]:
    """The daemon, until left; the event ends it."""
    ready, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(
        serve(
            paths,
            Settings(),
            compose=world.compose,
            ready=ready.set,
            stop=stop,
            version=version,
            timings=Quick,
            socket_type=socket_type,
        )
    )
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        waiting.cancel()
        task.result()
    try:
        yield stop
    finally:
        stop.set()
        async with asyncio.timeout(60):
            await task


@asynccontextmanager
async def client_of(paths: Paths) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that banger did not write: the wire is judged by somebody else's code."""
    async with aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(paths.socket), base_url="http://banger"
    ) as session:
        yield session
