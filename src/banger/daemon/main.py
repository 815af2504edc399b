"""The daemon's life: lock, log, services, socket, signals, and the way back out of each.

`banger` starts it detached (client/start.py); `banger daemon run` keeps it in front. The starter reads
descriptor 1 until one line says that it serves, or why it does not. SIGTERM and SIGINT end it: the socket
goes first, running operations are cancelled and clean up, VMs run on. After a crash: see listener.py.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import web

import banger
from banger.config.instance import ensure_folders
from banger.config.paths import Paths, resolve_paths
from banger.config.settings import Settings
from banger.config.toml import load_settings
from banger.daemon.app import make_app
from banger.daemon.context import Daemon, encoder
from banger.daemon.contracts import Services
from banger.daemon.failures import failure_body
from banger.daemon.journal import Journal, close_journal, open_journal
from banger.daemon.leases import GRACE_S, START_GRACE_S, LeaseKeeper
from banger.daemon.listener import OwnersSocket, StateLock, bind_socket, remove_socket
from banger.daemon.operations import HEARTBEAT_S, Operations
from banger.daemon.vm_routes import begin_delete
from banger.errors import BangerError
from banger.model.records import now

log = logging.getLogger(__name__)

READY_LINE = "banger-daemon: ready"
ERROR_LINE = "banger-daemon: error "
SHUTDOWN_S = 1.0
"""For open streams (leases, logs, events) to end by themselves."""

Compose = Callable[[Paths, Settings], Awaitable[Services]]


class Timings:
    """What tests make shorter."""

    heartbeat_s: float = HEARTBEAT_S
    lease_grace_s: float = GRACE_S
    lease_start_grace_s: float = START_GRACE_S


async def serve(
    paths: Paths,
    settings: Settings,
    *,
    compose: Compose,
    ready: Callable[[], None],
    stop: asyncio.Event | None = None,
    version: str = banger.__version__,
    timings: type[Timings] = Timings,
    socket_type: type[OwnersSocket] = OwnersSocket,
) -> None:
    """Serve until told to stop (route, signal handler setting `stop`). The journal is the caller's."""
    async with AsyncExitStack() as stack:
        ensure_folders(paths)
        lock = StateLock(paths.state_dir)
        await lock.acquire()
        stack.callback(lock.release)

        services = await compose(paths, settings)
        stack.push_async_callback(services.close)
        operations = await stack.enter_async_context(Operations())
        daemon: Daemon
        leases = LeaseKeeper(
            services.vms,
            operations,
            delete=lambda record: begin_delete(daemon, record),
            grace_s=timings.lease_grace_s,
            start_grace_s=timings.lease_start_grace_s,
        )
        daemon = Daemon(
            services,
            operations,
            leases=leases,
            version=version,
            started_at=now(),
            heartbeat_s=timings.heartbeat_s,
        )
        if stop is not None:
            daemon.stopping = stop
        runner = web.AppRunner(
            make_app(daemon), handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_S
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        listener = bind_socket(paths.socket, socket_type=socket_type)
        stack.callback(remove_socket, paths.socket)
        site = web.SockSite(runner, listener)
        await site.start()
        keeper = asyncio.create_task(leases.run(), name="leases")
        stack.push_async_callback(_end, keeper)

        log.info("serving on %s, version %s, pid %d", paths.socket, version, os.getpid())
        ready()
        await daemon.stopping.wait()
        log.info("stopping")
        # refuse newcomers before anything is taken down, so that their CLI starts the next daemon
        remove_socket(paths.socket)
        await site.stop()
        await operations.close()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The process. Exit status 0 after a stop, 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="banger daemon run")
    parser.add_argument("--detached", action="store_true", help="in the background: log to the file only")
    options = parser.parse_args(argv)
    from banger.daemon.compose import compose

    return run(resolve_paths(), compose=compose, detached=options.detached)


def run(paths: Paths, *, compose: Compose, detached: bool, version: str = banger.__version__) -> int:
    os.umask(0o077)
    if detached:
        os.chdir("/")
    try:
        settings = load_settings(paths.config_file)
        ensure_folders(paths)
    except Exception as error:
        return _report(error)
    journal = open_journal(paths.daemon_log, settings.log_level)
    if not detached:
        logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))
    try:
        asyncio.run(
            _with_signals(
                paths, settings, compose=compose, journal=journal, detached=detached, version=version
            )
        )
    except Exception as error:
        log.error("the daemon ends: %s", error, exc_info=not isinstance(error, BangerError))
        return _report(error)
    finally:
        log.info("ended")
        close_journal(journal)
    return 0


async def _with_signals(
    paths: Paths, settings: Settings, *, compose: Compose, journal: Journal, detached: bool, version: str
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    loop.set_exception_handler(_log_loop_error)

    def ready() -> None:
        print(READY_LINE, flush=True)
        if detached:
            journal.take_stdio()  # the starter's pipe closes; last words of the interpreter's go to the log

    await serve(paths, settings, compose=compose, ready=ready, stop=stop, version=version)


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.error("event loop: %s", context.get("message"), exc_info=context.get("exception"))


def _report(error: BaseException) -> int:
    """Tell the starter why, on the line that it waits for."""
    body = failure_body(error, op_id="")
    try:
        print(ERROR_LINE + encoder.encode(body).decode(), flush=True)
    except OSError:
        pass  # nobody listens any more
    return 1
