"""Routes about operations."""

from __future__ import annotations

from contextlib import aclosing

from aiohttp import web

from banger.api.replies import OperationList
from banger.daemon.context import Handler, answer, daemon_of, encoder, query_int
from banger.daemon.operations import Operation


def _operation(request: web.Request) -> Operation:
    return daemon_of(request).operations.get(request.match_info["operation"])


async def list_operations(request: web.Request) -> web.StreamResponse:
    operations = daemon_of(request).operations.list()
    return answer(OperationList(operations=tuple(operation.reply() for operation in operations)))


async def show(request: web.Request) -> web.StreamResponse:
    return answer(_operation(request).reply())


async def cancel(request: web.Request) -> web.StreamResponse:
    return answer(daemon_of(request).operations.cancel(_operation(request).id).reply())


async def events(request: web.Request) -> web.StreamResponse:
    operation = _operation(request)
    after = query_int(request, "after", default=0, maximum=1 << 53)
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    async with aclosing(operation.events(after, daemon_of(request).heartbeat_s)) as stream:
        await response.prepare(request)
        async for event in stream:
            await response.write(encoder.encode(event) + b"\n")
    await response.write_eof()
    return response


HANDLERS: dict[str, Handler] = {
    "operation.list": list_operations,
    "operation.show": show,
    "operation.cancel": cancel,
    "operation.events": events,
}
