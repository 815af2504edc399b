"""The web application: the route table bound to handlers, and what every request goes through.

Each request has an id (also its operation's): in every log record, in the reply's Banger-Op header and in
every error. The middleware turns errors into bodies and an older daemon away from a newer client.
"""

from __future__ import annotations

import logging
import time

from aiohttp import web

from banger.api.errors import error_body, http_status
from banger.api.routes import ROUTES
from banger.daemon import (
    catalog_routes,
    host_routes,
    operation_routes,
    server_routes,
    session_routes,
    stream_routes,
    vm_routes,
    workspace_routes,
)
from banger.daemon.context import DAEMON, Daemon, Handler, encoder
from banger.daemon.failures import logged
from banger.daemon.journal import current_operation
from banger.daemon.versions import is_newer
from banger.errors import BangerError, ErrorCode
from banger.model.ids import OperationId, new_operation_id

log = logging.getLogger(__name__)

MAX_BODY = 1 << 20
CLIENT_VERSION = "Banger-Client-Version"
OPERATION_HEADER = "Banger-Op"
_SERVED_TO_NEWER = ("server.", "daemon.", "operation.")


def handlers() -> dict[str, Handler]:
    return {
        **server_routes.HANDLERS,
        **vm_routes.HANDLERS,
        **stream_routes.HANDLERS,
        **catalog_routes.HANDLERS,
        **host_routes.HANDLERS,
        **operation_routes.HANDLERS,
        **session_routes.HANDLERS,
        **workspace_routes.HANDLERS,
    }


def make_app(daemon: Daemon) -> web.Application:
    bound = handlers()
    names = {route.name for route in ROUTES}
    if names != set(bound):
        raise AssertionError(f"routes and handlers differ: {sorted(names ^ set(bound))}")
    app = web.Application(middlewares=[_every_request], client_max_size=MAX_BODY)
    app[DAEMON] = daemon
    for route in ROUTES:
        app.router.add_route(route.method, route.path, bound[route.name], name=route.name)
    return app


@web.middleware
async def _every_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    op_id = new_operation_id()
    token = current_operation.set(op_id)
    began = time.monotonic()
    status = 0
    try:
        _turn_newer_away(request)
        response = await handler(request)
        status = response.status
        if not response.prepared:
            response.headers[OPERATION_HEADER] = op_id
        return response
    except web.HTTPException as refusal:
        status = refusal.status
        return _refusal(refusal, op_id)
    except ConnectionResetError:
        log.debug("the client has gone")
        raise
    except Exception as failure:
        error = logged(failure, op_id)
        status = http_status(error.code)
        return _error_response(error, status, op_id=op_id)
    finally:
        took_ms = (time.monotonic() - began) * 1000
        log.debug("%s %s: %d in %.1f ms", request.method, request.path, status, took_ms)
        current_operation.reset(token)


def _error_response(error: BangerError, status: int, *, op_id: OperationId) -> web.Response:
    return web.Response(
        body=encoder.encode(error_body(error, op_id=op_id)),
        status=status,
        content_type="application/json",
        headers={OPERATION_HEADER: op_id},
    )


def _refusal(refusal: web.HTTPException, op_id: OperationId) -> web.Response:
    """aiohttp's own refusals (no such route, body too large, …) in our shape."""
    missing = refusal.status == 404
    code = ErrorCode.NOT_FOUND if missing else ErrorCode.INVALID_ARGUMENT
    brief = "no such route" if missing else f"the request was refused: {refusal.reason}"
    return _error_response(BangerError(code, brief), refusal.status, op_id=op_id)


def _turn_newer_away(request: web.Request) -> None:
    """426 to a newer client while nothing runs: it ends this daemon, starts its own, and asks again."""
    client = request.headers.get(CLIENT_VERSION, "")
    daemon = request.app[DAEMON]
    if not client or not is_newer(client, daemon.version) or daemon.operations.running():
        return
    route = request.match_info.route.name or ""
    if route.startswith(_SERVED_TO_NEWER):
        return
    raise web.HTTPUpgradeRequired(reason=f"this daemon is {daemon.version}, the client {client[:40]!a}")
