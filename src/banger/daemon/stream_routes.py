"""Routes that stay open: leases, logs, and the raw bridge to a guest's agent."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from banger.api.replies import LeaseLine
from banger.daemon.agentbridge import PROTOCOL, ClientBytes, bridge, connect_guest
from banger.daemon.context import Handler, daemon_of, encoder, query_bool, query_int
from banger.daemon.logfiles import LogFile, chunks
from banger.daemon.vm_routes import require_running
from banger.errors import BangerError, ErrorCode

log = logging.getLogger(__name__)

MAX_TAIL = 100_000
SOURCES = {"console": "console.log", "monitor": "monitor.log"}


async def lease(request: web.Request) -> web.StreamResponse:
    """Ends when the client goes: its handler is cancelled then (main.py: handler_cancellation)."""
    daemon = daemon_of(request)
    record = daemon.services.vms.resolve(request.match_info["vm"])
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    with daemon.leases.lease(record.id):
        await response.prepare(request)
        await response.write(encoder.encode(LeaseLine(vm_id=record.id, leased=True)) + b"\n")
        await daemon.stopping.wait()
    return response


async def logs(request: web.Request) -> web.StreamResponse:
    daemon = daemon_of(request)
    record = daemon.services.vms.resolve(request.match_info["vm"])
    source = request.query.get("source", "console")
    if source not in SOURCES:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"source: {source[:40]!a} is not console or monitor")
    follow = query_bool(request, "follow")
    tail = query_int(request, "tail", default=-1, maximum=MAX_TAIL)
    path = f"{record.runtime.vm_dir}/{SOURCES[source]}"
    if source == "console" and record.runtime.log_path:
        path = record.runtime.log_path
    file = await asyncio.to_thread(LogFile.open, path, tail)
    try:
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        async for chunk in chunks(file, follow=follow, stopping=daemon.stopping):
            await response.write(chunk)
        await response.write_eof()
        return response
    finally:
        file.close()


async def agent(request: web.Request) -> web.StreamResponse:
    daemon = daemon_of(request)
    record = daemon.services.vms.resolve(request.match_info["vm"])
    require_running(record)
    if request.headers.get("Upgrade", "").lower() != PROTOCOL:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"this route needs the header Upgrade: {PROTOCOL}")
    await daemon.services.vms.touch(record.id)
    guest = await connect_guest(record.runtime.vsock_path)
    try:
        response = web.StreamResponse(status=101, headers={"Connection": "Upgrade", "Upgrade": PROTOCOL})
        client = ClientBytes(request)
        await response.prepare(request)
        client.attach()
        await bridge(client, guest)
        response.force_close()
        return response
    finally:
        guest.writer.close()


HANDLERS: dict[str, Handler] = {"vm.lease": lease, "vm.logs": logs, "vm.agent": agent}
