"""What every route's handler works with: one per daemon, made by main.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

import msgspec
from aiohttp import web

from banger.daemon.contracts import Services
from banger.daemon.journal import current_operation
from banger.daemon.leases import LeaseKeeper
from banger.daemon.operations import HEARTBEAT_S, Operation, Operations
from banger.errors import BangerError, ErrorCode
from banger.model.ids import OperationId

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T", bound=msgspec.Struct)

encoder = msgspec.json.Encoder()


class Daemon:
    """The parts of a running daemon. `stopping` is set to end it."""

    def __init__(
        self,
        services: Services,
        operations: Operations,
        *,
        leases: LeaseKeeper,
        version: str,
        started_at: datetime,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self.services = services
        self.operations = operations
        self.leases = leases
        self.version = version
        self.started_at = started_at
        self.heartbeat_s = heartbeat_s
        self.stopping = asyncio.Event()


DAEMON: web.AppKey[Daemon] = web.AppKey("daemon", Daemon)


def daemon_of(request: web.Request) -> Daemon:
    return request.app[DAEMON]


def request_op_id() -> OperationId:
    """The id that the middleware gave the request being handled; the operation it starts has the same."""
    return OperationId(current_operation.get())


async def read_body(request: web.Request, struct: type[T]) -> T:
    """The request's JSON body as `struct`; an empty body is an empty object."""
    raw = await request.read()
    try:
        return msgspec.json.decode(raw or b"{}", type=struct)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"the request's body: {fault}") from None


def query_int(request: web.Request, name: str, *, default: int, maximum: int) -> int:
    text = request.query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 18) or int(text) > maximum:
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT, f"{name}: {text[:40]!a} is not a number from 0 to {maximum}"
        )
    return int(text)


def query_bool(request: web.Request, name: str) -> bool:
    text = request.query.get(name, "false")
    if text not in ("true", "false", "1", "0"):
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"{name}: {text[:40]!a} is neither true nor false")
    return text in ("true", "1")


def accepted(operation: Operation) -> web.Response:
    """202, and where to follow it."""
    reply = operation.reply()
    response = answer(reply, status=202)
    response.headers["Location"] = reply.url
    return response


def answer(struct: msgspec.Struct, *, status: int = 200) -> web.Response:
    return web.Response(body=encoder.encode(struct), status=status, content_type="application/json")
