"""Routes about VMs: reading, and starting the operations that change them. No logic of its own."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from banger.api.replies import ConnectReply, ExecDefaults, StatsReply, VMList, VMReply
from banger.api.requests import (
    ConnectVM,
    CreateVM,
    KillVM,
    PublishPorts,
    RestartVM,
    SetVM,
    StartVM,
    StopVM,
    UnpublishPorts,
    WhyNet,
)
from banger.daemon.context import (
    Daemon,
    Handler,
    accepted,
    answer,
    daemon_of,
    query_bool,
    read_body,
    request_op_id,
)
from banger.daemon.operations import Operation, as_result
from banger.daemon.views import image_names, show, vm_reply
from banger.errors import BangerError, ErrorCode
from banger.model.ids import OperationId, new_operation_id
from banger.model.progress import Progress
from banger.model.records import VMRecord
from banger.model.states import VMState

log = logging.getLogger(__name__)

AGENT_PORT = 1024
"""The guest agent's vsock port (ARCHITECTURE.md, "The agent's protocol")."""
VMWork = Callable[[Progress], Awaitable[VMRecord]]
PURPOSES = ("exec", "shell", "cp", "session")


def vm_of(request: web.Request) -> VMRecord:
    return daemon_of(request).services.vms.resolve(request.match_info["vm"])


def begin(
    daemon: Daemon,
    op_id: OperationId,
    *,
    kind: str,
    work: VMWork,
    vm_id: str = "",
    auto_remove: bool = False,
) -> Operation:
    """An operation whose result is the VM as it is afterwards (for delete: as it last was)."""

    async def run(progress: Progress) -> dict[str, object]:
        record = await work(progress)
        operation.vm_id = record.id
        return as_result(shown(daemon, record))

    operation = daemon.operations.start(op_id, kind, work=run, vm_id=vm_id, auto_remove=auto_remove)
    return operation


def shown(daemon: Daemon, record: VMRecord) -> VMReply:
    services = daemon.services
    return show(record, services.images, published=services.vms.published(record))


def begin_delete(daemon: Daemon, record: VMRecord) -> None:
    """For the leases: delete without a request."""

    async def work(progress: Progress) -> VMRecord:
        return await daemon.services.vms.delete_by_itself(record.id, progress)

    begin(daemon, new_operation_id(), kind="vm.delete", work=work, vm_id=record.id)


async def list_vms(request: web.Request) -> web.StreamResponse:
    services = daemon_of(request).services
    records = services.vms.list()
    names = image_names(services.images) if records else {}
    replies = (vm_reply(record, names, published=services.vms.published(record)) for record in records)
    return answer(VMList(vms=tuple(replies)))


async def show_vm(request: web.Request) -> web.StreamResponse:
    return answer(shown(daemon_of(request), vm_of(request)))


async def create(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, CreateVM)
    daemon = daemon_of(request)

    async def work(progress: Progress) -> VMRecord:
        return await daemon.services.vms.create(body, progress)

    operation = begin(daemon, request_op_id(), kind="vm.create", work=work, auto_remove=body.auto_remove)
    if body.auto_remove:
        daemon.leases.wake()
    return accepted(operation)


async def start(request: web.Request) -> web.StreamResponse:
    await read_body(request, StartVM)
    vms, record = daemon_of(request).services.vms, vm_of(request)
    return _on(request, "vm.start", record=record, work=lambda progress: vms.start(record.id, progress))


async def stop(request: web.Request) -> web.StreamResponse:
    await read_body(request, StopVM)
    vms, record = daemon_of(request).services.vms, vm_of(request)
    return _on(request, "vm.stop", record=record, work=lambda progress: vms.stop(record.id, progress))


async def restart(request: web.Request) -> web.StreamResponse:
    await read_body(request, RestartVM)
    vms, record = daemon_of(request).services.vms, vm_of(request)
    return _on(request, "vm.restart", record=record, work=lambda progress: vms.restart(record.id, progress))


async def kill(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, KillVM)
    vms, record = daemon_of(request).services.vms, vm_of(request)
    return _on(
        request, "vm.kill", record=record, work=lambda progress: vms.kill(record.id, body, progress=progress)
    )


async def delete(request: web.Request) -> web.StreamResponse:
    vms, record = daemon_of(request).services.vms, vm_of(request)
    remove = vms.delete_if_not_running if query_bool(request, "if_not_running") else vms.delete
    discard = query_bool(request, "discard_work")
    return _on(
        request,
        "vm.delete",
        record=record,
        work=lambda progress: remove(record.id, progress, discard_work=discard),
    )


async def change(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, SetVM)
    vms, record = daemon_of(request).services.vms, vm_of(request)
    return _on(
        request, "vm.set", record=record, work=lambda progress: vms.set(record.id, body, progress=progress)
    )


async def publish(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, PublishPorts)
    vms, record = daemon_of(request).services.vms, vm_of(request)
    return _on(request, "vm.publish", record=record, work=lambda _progress: vms.publish(record.id, body))


async def unpublish(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, UnpublishPorts)
    vms, record = daemon_of(request).services.vms, vm_of(request)
    return _on(request, "vm.unpublish", record=record, work=lambda _progress: vms.unpublish(record.id, body))


async def stats(request: web.Request) -> web.StreamResponse:
    record = vm_of(request)
    vms = daemon_of(request).services.vms
    taken = await vms.stats(record.id)
    guest = await vms.figures(record.id)
    return answer(StatsReply(id=record.id, name=record.name, state=record.state, stats=taken, guest=guest))


async def health(request: web.Request) -> web.StreamResponse:
    return answer(await daemon_of(request).services.vms.health(vm_of(request).id))


async def ports(request: web.Request) -> web.StreamResponse:
    record = vm_of(request)
    require_running(record)
    return answer(await daemon_of(request).services.vms.ports(record.id))


async def net_why(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, WhyNet)
    record = vm_of(request)
    require_running(record)
    return answer(await daemon_of(request).services.vms.net_why(record.id, body))


def _on(request: web.Request, kind: str, *, record: VMRecord, work: VMWork) -> web.Response:
    operation = begin(daemon_of(request), request_op_id(), kind=kind, work=work, vm_id=record.id)
    return accepted(operation)


def require_running(record: VMRecord) -> None:
    if record.state is not VMState.RUNNING:
        raise BangerError(
            ErrorCode.WRONG_STATE,
            f"VM {record.name} is not running: it is {record.state.value}",
            hint=f"banger vm start {record.name}",
        )


async def connect(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, ConnectVM)
    if body.purpose not in PURPOSES:
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT, f"purpose: {body.purpose[:40]!a} is not one of {', '.join(PURPOSES)}"
        )
    record = vm_of(request)
    require_running(record)
    record = await daemon_of(request).services.vms.touch(record.id)
    workspace = record.workspace
    return answer(
        ConnectReply(
            id=record.id,
            name=record.name,
            vm_dir=record.runtime.vm_dir,
            vsock_path=record.runtime.vsock_path,
            port=AGENT_PORT,
            exec=ExecDefaults(cwd=workspace.guest_path if workspace else ""),
            workspace=workspace,
        )
    )


HANDLERS: dict[str, Handler] = {
    "vm.list": list_vms,
    "vm.create": create,
    "vm.show": show_vm,
    "vm.delete": delete,
    "vm.set": change,
    "vm.start": start,
    "vm.stop": stop,
    "vm.restart": restart,
    "vm.kill": kill,
    "vm.publish": publish,
    "vm.unpublish": unpublish,
    "vm.stats": stats,
    "vm.health": health,
    "vm.ports": ports,
    "vm.net.why": net_why,
    "vm.connect": connect,
}
