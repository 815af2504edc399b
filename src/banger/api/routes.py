"""The routes of /v1 as data: the daemon binds handlers to their names; OpenAPI and docs come out of it.

A route that is not in this table does not exist: daemon/app.py refuses to start when a route has no
handler or a handler no route. Path parameters are written as aiohttp and OpenAPI both write them: {vm}.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from banger.api import replies, requests
from banger.model.guestview import VMPorts
from banger.model.netwhy import NetWhy
from banger.model.records import GuestSession, Image, Kernel, VMHealth
from banger.model.work import Work


class Kind(StrEnum):
    RESULT = "result"  # 200 and the reply
    OPERATION = "operation"  # 202 and an OperationReply; Location names its URL
    EVENTS = "events"  # 200, application/x-ndjson: one `reply` a line, as long as it lasts
    BYTES = "bytes"  # 200, application/octet-stream
    UPGRADE = "upgrade"  # 101 Switching Protocols, then bytes both ways


class Query(msgspec.Struct, frozen=True):
    name: str
    type: str  # a JSON Schema type
    doc: str


class Route(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    method: str
    path: str
    kind: Kind
    doc: str
    request: type[msgspec.Struct] | None = None
    reply: type[msgspec.Struct] | None = None
    query: tuple[Query, ...] = ()


def _vm_operation(verb: str, request: type[msgspec.Struct], doc: str, *, method: str = "POST") -> Route:
    return Route(
        name=f"vm.{verb}",
        method=method,
        path="/v1/vms/{vm}" if method != "POST" else f"/v1/vms/{{vm}}/{verb}",
        kind=Kind.OPERATION,
        request=request,
        reply=replies.VMReply,
        doc=doc,
    )


ROUTES: tuple[Route, ...] = (
    Route(
        name="server.info",
        method="GET",
        path="/v1",
        kind=Kind.RESULT,
        reply=replies.ServerInfo,
        doc="Version, process and features of the daemon.",
    ),
    Route(
        name="server.openapi",
        method="GET",
        path="/v1/openapi.json",
        kind=Kind.RESULT,
        doc="This API as an OpenAPI 3.1 document.",
    ),
    Route(
        name="daemon.stop",
        method="POST",
        path="/v1/daemon/stop",
        kind=Kind.RESULT,
        request=requests.StopDaemon,
        reply=replies.Stopping,
        doc="Ends the daemon. VMs run on; operations are cancelled, unless if_idle refuses because of them.",
    ),
    Route(
        name="vm.list",
        method="GET",
        path="/v1/vms",
        kind=Kind.RESULT,
        reply=replies.VMList,
        doc="Every VM, oldest first.",
    ),
    Route(
        name="vm.create",
        method="POST",
        path="/v1/vms",
        kind=Kind.OPERATION,
        request=requests.CreateVM,
        reply=replies.VMReply,
        doc="Makes a VM and, unless start is false, boots it.",
    ),
    Route(
        name="vm.show",
        method="GET",
        path="/v1/vms/{vm}",
        kind=Kind.RESULT,
        reply=replies.VMReply,
        doc="One VM, by full id, exact name or unique id prefix, in that order.",
    ),
    Route(
        name="vm.delete",
        method="DELETE",
        path="/v1/vms/{vm}",
        kind=Kind.OPERATION,
        reply=replies.VMReply,
        doc="Ends the VM if it is alive (a start under way is aborted) and removes all of it. The work in "
        "its workspace is kept first; when that fails nothing is removed (work_not_kept).",
        query=(
            Query("if_not_running", "boolean", "abort nothing; wrong_state when it runs"),
            Query("discard_work", "boolean", "keep nothing, and remove what was kept before"),
        ),
    ),
    _vm_operation("set", requests.SetVM, "Changes size or NAT.", method="PATCH"),
    _vm_operation("start", requests.StartVM, "Boots the VM; one that runs is answered as it is."),
    _vm_operation("stop", requests.StopVM, "Shuts the guest down in order; no error when it is not alive."),
    _vm_operation("restart", requests.RestartVM, "Stop and start under one lock."),
    _vm_operation("kill", requests.KillVM, "Signals the machine monitor and tears down."),
    _vm_operation(
        "publish",
        requests.PublishPorts,
        "Publishes ports of the guest's on the host, at once where the VM runs; all or none.",
    ),
    _vm_operation(
        "unpublish",
        requests.UnpublishPorts,
        "Takes published ports back, and ends the connections through them.",
    ),
    Route(
        name="vm.stats",
        method="POST",
        path="/v1/vms/{vm}/stats",
        kind=Kind.RESULT,
        reply=replies.StatsReply,
        doc="The VM's figures, taken now and stored; with them the guest's own, which are not. "
        "Does not touch it.",
    ),
    Route(
        name="vm.health",
        method="GET",
        path="/v1/vms/{vm}/health",
        kind=Kind.RESULT,
        reply=VMHealth,
        doc="What the guest's agent says, within 3 s. A dead VM is `healthy: false`; "
        "an agent that does not answer is an error.",
    ),
    Route(
        name="vm.ports",
        method="GET",
        path="/v1/vms/{vm}/ports",
        kind=Kind.RESULT,
        reply=VMPorts,
        doc="Who listens in the guest, by its own /proc, with a link where the host was answered in http(s). "
        "Does not touch it; wrong_state when it does not run.",
    ),
    Route(
        name="vm.net.why",
        method="POST",
        path="/v1/vms/{vm}/net/why",
        kind=Kind.RESULT,
        request=requests.WhyNet,
        reply=NetWhy,
        doc="Tries to reach a host from inside the guest, follows the packets through this host, and says "
        "what stops them and what to do. Some seconds, or half a minute; does not touch it; wrong_state when "
        "not running.",
    ),
    Route(
        name="vm.connect",
        method="POST",
        path="/v1/vms/{vm}/connect",
        kind=Kind.RESULT,
        request=requests.ConnectVM,
        reply=replies.ConnectReply,
        doc="Where the guest's agent can be reached. Touches the VM; wrong_state when it does not run.",
    ),
    Route(
        name="vm.agent",
        method="GET",
        path="/v1/vms/{vm}/agent",
        kind=Kind.UPGRADE,
        doc="With `Upgrade: banger-agent/1`: the bytes of a connection to the guest's agent, "
        "for clients that may not open the guest socket.",
    ),
    Route(
        name="vm.lease",
        method="POST",
        path="/v1/vms/{vm}/lease",
        kind=Kind.EVENTS,
        reply=replies.LeaseLine,
        doc="Holds a VM with auto_remove for as long as this connection is open; "
        "10 s after the last lease ended it is gone.",
    ),
    Route(
        name="vm.logs",
        method="GET",
        path="/v1/vms/{vm}/logs",
        kind=Kind.BYTES,
        doc="The console's or the monitor's log, raw: nothing is made safe for a terminal here.",
        query=(
            Query("source", "string", "console (default) or monitor"),
            Query("follow", "boolean", "go on with what is appended, until the client leaves"),
            Query("tail", "integer", "only the last so many lines"),
        ),
    ),
    Route(
        name="session.list",
        method="GET",
        path="/v1/vms/{vm}/sessions",
        kind=Kind.RESULT,
        reply=replies.SessionList,
        doc="The sessions of a running VM, oldest first, as its agent knows them.",
    ),
    Route(
        name="session.start",
        method="POST",
        path="/v1/vms/{vm}/sessions",
        kind=Kind.RESULT,
        request=requests.StartSession,
        reply=GuestSession,
        doc="Starts a long-lived command, and touches the VM. One that cannot be launched is kept, "
        "and answered with status `failed`.",
    ),
    Route(
        name="session.show",
        method="GET",
        path="/v1/vms/{vm}/sessions/{session}",
        kind=Kind.RESULT,
        reply=GuestSession,
        doc="One session, by full id, exact name or unique id prefix.",
    ),
    Route(
        name="session.signal",
        method="POST",
        path="/v1/vms/{vm}/sessions/{session}/signal",
        kind=Kind.RESULT,
        request=requests.SignalSession,
        reply=GuestSession,
        doc="Signals the command's process group; wrong_state when it has ended.",
    ),
    Route(
        name="session.stop",
        method="POST",
        path="/v1/vms/{vm}/sessions/{session}/stop",
        kind=Kind.RESULT,
        request=requests.StopSession,
        reply=GuestSession,
        doc="Ends the command: TERM, then KILL. Answers once it has ended; one that had is no error.",
    ),
    Route(
        name="session.remove",
        method="DELETE",
        path="/v1/vms/{vm}/sessions/{session}",
        kind=Kind.RESULT,
        reply=GuestSession,
        doc="Removes a session and its logs, and answers what it was; in_use while it runs.",
        query=(Query("force", "boolean", "kill it first"),),
    ),
    Route(
        name="host.audit",
        method="GET",
        path="/v1/host/audit",
        kind=Kind.RESULT,
        reply=replies.Audit,
        doc="Objects on the host with banger's marks or names that nothing explains; normally none.",
    ),
    Route(
        name="host.repair",
        method="POST",
        path="/v1/host/repair",
        kind=Kind.RESULT,
        reply=replies.Audit,
        doc="The same audit, and what carries this instance's mark is removed.",
    ),
    Route(
        name="image.list",
        method="GET",
        path="/v1/images",
        kind=Kind.RESULT,
        reply=replies.ImageList,
        doc="Every image on this host.",
    ),
    Route(
        name="image.catalog",
        method="GET",
        path="/v1/catalog/images",
        kind=Kind.RESULT,
        reply=replies.ImageCatalog,
        doc="The images that can be pulled by name: those built in, and those of the configuration.",
    ),
    Route(
        name="image.show",
        method="GET",
        path="/v1/images/{image}",
        kind=Kind.RESULT,
        reply=Image,
        doc="One image, by full id, exact name or unique id prefix.",
    ),
    Route(
        name="image.pull",
        method="POST",
        path="/v1/images/pull",
        kind=Kind.OPERATION,
        request=requests.PullImage,
        reply=Image,
        doc="Gets an image of the catalog, of a registry or of an archive file, and makes it bootable. "
        "What is here already, by its digest, is answered as it is.",
    ),
    Route(
        name="image.register",
        method="POST",
        path="/v1/images/register",
        kind=Kind.RESULT,
        request=requests.RegisterImage,
        reply=Image,
        doc="An unmanaged image: the user's own files, where they lie.",
    ),
    Route(
        name="image.promote",
        method="POST",
        path="/v1/images/{image}/promote",
        kind=Kind.OPERATION,
        reply=Image,
        doc="Copies an unmanaged image's files in; one that is managed is answered as it is.",
    ),
    Route(
        name="image.cache.prune",
        method="POST",
        path="/v1/images/cache/prune",
        kind=Kind.RESULT,
        request=requests.PruneCache,
        reply=replies.CachePruned,
        doc="Removes the layers that pulls have left in the cache; images do not need them.",
    ),
    Route(
        name="image.delete",
        method="DELETE",
        path="/v1/images/{image}",
        kind=Kind.RESULT,
        reply=Image,
        doc="Removes an image and its files, but for those of an unmanaged one, and answers what it was; "
        "in_use names the VMs that have it.",
    ),
    Route(
        name="kernel.list",
        method="GET",
        path="/v1/kernels",
        kind=Kind.RESULT,
        reply=replies.KernelList,
        doc="Every kernel on this host.",
    ),
    Route(
        name="kernel.catalog",
        method="GET",
        path="/v1/catalog/kernels",
        kind=Kind.RESULT,
        reply=replies.KernelCatalog,
        doc="The kernels that can be pulled.",
    ),
    Route(
        name="kernel.show",
        method="GET",
        path="/v1/kernels/{kernel}",
        kind=Kind.RESULT,
        reply=Kernel,
        doc="One kernel on this host, by its name.",
    ),
    Route(
        name="kernel.pull",
        method="POST",
        path="/v1/kernels/{kernel}/pull",
        kind=Kind.OPERATION,
        reply=Kernel,
        doc="Gets a kernel of the catalog; one that is here is checked and answered.",
    ),
    Route(
        name="kernel.take_in",
        method="POST",
        path="/v1/kernels/import",
        kind=Kind.OPERATION,
        request=requests.ImportKernel,
        reply=Kernel,
        doc="Takes a kernel in from a folder: vmlinux or bzImage, and maybe initrd.img and modules/.",
    ),
    Route(
        name="kernel.remove",
        method="DELETE",
        path="/v1/kernels/{kernel}",
        kind=Kind.RESULT,
        reply=Kernel,
        doc="Removes a kernel, and answers what it was. Images keep theirs.",
    ),
    Route(
        name="workspace.set",
        method="PUT",
        path="/v1/vms/{vm}/workspace",
        kind=Kind.RESULT,
        request=requests.SetWorkspace,
        reply=replies.VMReply,
        doc="Says what repository was brought into the guest, so that its work is kept.",
    ),
    Route(
        name="workspace.keep",
        method="POST",
        path="/v1/vms/{vm}/workspace/keep",
        kind=Kind.OPERATION,
        request=requests.KeepWork,
        reply=Work,
        doc="Keeps the work in the VM's workspace now: from its guest, or from the disk of one that is dead.",
    ),
    Route(
        name="work.list",
        method="GET",
        path="/v1/work",
        kind=Kind.RESULT,
        reply=replies.WorkList,
        doc="The work that is kept, of VMs that are there and of VMs that are gone.",
    ),
    Route(
        name="work.show",
        method="GET",
        path="/v1/work/{work}",
        kind=Kind.RESULT,
        reply=Work,
        doc="The kept work of one VM, by its id, name or unique id prefix; of several of one name that of "
        "the VM that is there, else the newest.",
    ),
    Route(
        name="work.delete",
        method="DELETE",
        path="/v1/work/{work}",
        kind=Kind.RESULT,
        reply=Work,
        doc="Removes the kept work of a VM that is gone, and answers what it was.",
    ),
    Route(
        name="work.pack",
        method="POST",
        path="/v1/work/{work}/pack",
        kind=Kind.BYTES,
        request=requests.PackWork,
        doc="All commits and files of the kept work, as a pack of git's, without what `have` reaches.",
    ),
    Route(
        name="work.patch",
        method="GET",
        path="/v1/work/{work}/patch",
        kind=Kind.BYTES,
        doc="All that changed in the workspace, as a binary patch for `git apply`.",
        query=(Query("base", "string", "from this commit on; without it, from what was brought"),),
    ),
    Route(
        name="operation.list",
        method="GET",
        path="/v1/operations",
        kind=Kind.RESULT,
        reply=replies.OperationList,
        doc="Running operations and the last finished ones.",
    ),
    Route(
        name="operation.show",
        method="GET",
        path="/v1/operations/{operation}",
        kind=Kind.RESULT,
        reply=replies.OperationReply,
        doc="One operation.",
    ),
    Route(
        name="operation.events",
        method="GET",
        path="/v1/operations/{operation}/events",
        kind=Kind.EVENTS,
        reply=replies.OperationEvent,
        doc="What happened since event `after`, then what happens, with a heartbeat; "
        "ends with the result or the error.",
        query=(Query("after", "integer", "the last sequence number already seen; 0 is from the beginning"),),
    ),
    Route(
        name="operation.cancel",
        method="POST",
        path="/v1/operations/{operation}/cancel",
        kind=Kind.RESULT,
        reply=replies.OperationReply,
        doc="Asks a running operation to stop and clean up; one that is finished is answered as it is.",
    ),
)
