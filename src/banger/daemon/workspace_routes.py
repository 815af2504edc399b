"""Routes about workspaces: what was brought into a VM, and the work that is kept of it. No logic of its own.

`/v1/vms/{vm}/workspace` is about a VM that is there; `/v1/work` about what is kept, also of VMs that
are gone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from banger.api.replies import WorkList
from banger.api.requests import KeepWork, PackWork, SetWorkspace
from banger.daemon.context import Daemon, Handler, accepted, answer, daemon_of, read_body, request_op_id
from banger.daemon.operations import as_result
from banger.daemon.vm_routes import shown, vm_of
from banger.errors import BangerError, ErrorCode
from banger.model.progress import Progress
from banger.model.work import Work

log = logging.getLogger(__name__)


async def set_workspace(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, SetWorkspace)
    daemon, record = daemon_of(request), vm_of(request)
    return answer(shown(daemon, await daemon.services.vms.set_workspace(record.id, body)))


async def keep(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, KeepWork)
    daemon, record = daemon_of(request), vm_of(request)

    async def run(progress: Progress) -> dict[str, object]:
        work = await daemon.services.vms.keep(record.id, progress, ignored=body.ignored)
        return as_result(msgspec.structs.replace(work, vm_exists=True))

    operation = daemon.operations.start(request_op_id(), "workspace.keep", work=run, vm_id=record.id)
    return accepted(operation)


async def list_work(request: web.Request) -> web.StreamResponse:
    daemon = daemon_of(request)
    existing = _existing(daemon)
    return answer(WorkList(work=tuple(_shown(work, existing) for work in daemon.services.works.list())))


async def show(request: web.Request) -> web.StreamResponse:
    return answer(_work(request))


async def remove(request: web.Request) -> web.StreamResponse:
    work = _work(request)
    if work.vm_exists:
        raise BangerError(
            ErrorCode.IN_USE,
            f"VM {work.vm_name} is there, and its work is kept for as long as it is",
            hint=f"both go with: banger vm delete --discard-work {work.vm_name}",
        )
    await daemon_of(request).services.works.forget(work.vm_id)
    return answer(work)


async def pack(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, PackWork)
    work = _work(request)
    return await _stream(request, daemon_of(request).services.works.pack(work.vm_id, body.have))


async def patch(request: web.Request) -> web.StreamResponse:
    work = _work(request)
    base = request.query.get("base", "")
    return await _stream(request, daemon_of(request).services.works.patch(work.vm_id, base=base))


async def _stream(request: web.Request, pieces: AsyncIterator[bytes]) -> web.StreamResponse:
    """What fails before the first piece is an answer; later the stream breaks off, and is seen to."""
    first = await anext(pieces, b"")
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    await response.prepare(request)
    await response.write(first)
    try:
        async for piece in pieces:
            await response.write(piece)
    except BangerError as error:
        log.warning("%s broke off: %s", request.path, error)
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError from error
    await response.write_eof()
    return response


def _existing(daemon: Daemon) -> frozenset[str]:
    return frozenset(record.id for record in daemon.services.vms.list())


def _shown(work: Work, existing: frozenset[str]) -> Work:
    return msgspec.structs.replace(work, vm_exists=work.vm_id in existing)


def _work(request: web.Request) -> Work:
    daemon = daemon_of(request)
    existing = _existing(daemon)
    return _shown(daemon.services.works.find(request.match_info["work"], existing=existing), existing)


HANDLERS: dict[str, Handler] = {
    "workspace.set": set_workspace,
    "workspace.keep": keep,
    "work.list": list_work,
    "work.show": show,
    "work.delete": remove,
    "work.pack": pack,
    "work.patch": patch,
}
