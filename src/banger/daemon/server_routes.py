"""Routes about the daemon itself."""

from __future__ import annotations

import asyncio
import logging
import os

from aiohttp import web

from banger.api.openapi import document
from banger.api.replies import API_VERSION, FEATURES, ServerInfo, Stopping
from banger.api.requests import StopDaemon
from banger.daemon.context import Handler, answer, daemon_of, encoder, read_body
from banger.errors import BangerError, ErrorCode

log = logging.getLogger(__name__)


async def info(request: web.Request) -> web.StreamResponse:
    daemon = daemon_of(request)
    return answer(
        ServerInfo(
            api=API_VERSION,
            version=daemon.version,
            pid=os.getpid(),
            instance=daemon.services.instance,
            features=FEATURES,
            started_at=daemon.started_at,
            running_operations=len(daemon.operations.running()),
            warnings=tuple(daemon.services.warnings()),
        )
    )


async def openapi(request: web.Request) -> web.StreamResponse:
    body = encoder.encode(document(daemon_of(request).version))
    return web.Response(body=body, content_type="application/json")


async def stop(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, StopDaemon)
    daemon = daemon_of(request)
    running = daemon.operations.running()
    if body.if_idle and running:
        raise BangerError(
            ErrorCode.BUSY,
            f"{len(running)} operation{'s' if len(running) > 1 else ''} under way: "
            + ", ".join(operation.kind for operation in running[:10]),
            hint="wait, or stop without if_idle",
        )
    log.info("asked to stop")
    # after the reply is on its way
    asyncio.get_running_loop().call_later(0.01, daemon.stopping.set)
    return answer(Stopping(pid=os.getpid()))


HANDLERS: dict[str, Handler] = {"server.info": info, "server.openapi": openapi, "daemon.stop": stop}
