"""What the daemon answers: the bodies of /v1 replies and the lines of its streams.

A VM on the wire is its record with two things added: `runtime.state` (the VM's own state; never stored
twice) and `image` (the image's name). Empty optional fields are left out: a missing one is empty.
Made by daemon/views.py; documented by docs/api.md and GET /v1/openapi.json, which are generated from here.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from banger.api.errors import ErrorBody
from banger.model.guestview import GuestFigures, PublishedState
from banger.model.records import GuestSession, Image, Kernel, VMRuntime, VMSpec, VMStats, Workspace
from banger.model.states import VMState
from banger.model.work import Work

API_VERSION = "v1"

FEATURES: tuple[str, ...] = (
    "agent-upgrade",  # GET /v1/vms/{vm}/agent, Upgrade: banger-agent/1
    "audit",  # GET /v1/host/audit, POST /v1/host/repair
    "connect",  # POST /v1/vms/{vm}/connect
    "daemon-replace",  # 426 to a newer client while idle; POST /v1/daemon/stop with if_idle
    "delete-if-not-running",  # DELETE /v1/vms/{vm}?if_not_running=true
    "events-after",  # GET /v1/operations/{operation}/events?after=N
    "health",  # GET /v1/vms/{vm}/health
    "lease",  # POST /v1/vms/{vm}/lease
    "logs",  # GET /v1/vms/{vm}/logs
    "net-why",  # POST /v1/vms/{vm}/net/why
    "operation-cancel",  # POST /v1/operations/{operation}/cancel
    "ports",  # GET /v1/vms/{vm}/ports
    "publish",  # POST /v1/vms/{vm}/publish and unpublish, CreateVM.publish
    "sessions",  # /v1/vms/{vm}/sessions
    "stats",  # POST /v1/vms/{vm}/stats
    "workspaces",  # /v1/vms/{vm}/workspace, /v1/work, DELETE /v1/vms/{vm}?discard_work=true
)
"""Announced by name in GET /v1, so that a client asks what a daemon can and not how old it is."""


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1."""

    api: str
    version: str
    pid: int
    instance: str  # 16 hex digits: the mark on everything this instance makes
    features: tuple[str, ...]
    started_at: datetime
    running_operations: int
    warnings: tuple[str, ...] = ()  # what does not work now, in whole sentences: a name server's busy port


class RuntimeReply(VMRuntime, frozen=True, kw_only=True, omit_defaults=True):
    """VMRuntime as it is stored, with the VM's state, and its published ports as they are now."""

    state: VMState
    published: tuple[PublishedState, ...] = ()


class VMReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    name: str
    image_id: str
    state: VMState
    created_at: datetime
    updated_at: datetime
    last_touched_at: datetime
    spec: VMSpec
    runtime: RuntimeReply
    image: str = ""  # the image's name, where the image is still there
    auto_remove: bool = False
    stats: VMStats = VMStats()
    workspace: Workspace | None = None


class VMList(msgspec.Struct, frozen=True, kw_only=True):
    vms: tuple[VMReply, ...]


class ImageList(msgspec.Struct, frozen=True, kw_only=True):
    images: tuple[Image, ...]


class CatalogImage(msgspec.Struct, frozen=True, kw_only=True):
    """kind: `debian` or `oci`. source: the release, or the reference with its digest."""

    name: str
    kind: str
    source: str
    description: str
    here: bool


class ImageCatalog(msgspec.Struct, frozen=True, kw_only=True):
    """What `image pull NAME` knows how to get: what is built in, and what the configuration adds."""

    images: tuple[CatalogImage, ...]


class CachePruned(msgspec.Struct, frozen=True, kw_only=True):
    """What went from the cache of layers, or, in a dry run, would go."""

    blobs: int
    freed_bytes: int
    in_use: int  # kept: a pull uses them now


class KernelList(msgspec.Struct, frozen=True, kw_only=True):
    kernels: tuple[Kernel, ...]


class CatalogKernel(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    distro: str
    suite: str
    here: bool


class KernelCatalog(msgspec.Struct, frozen=True, kw_only=True):
    """What `kernel pull` knows how to get."""

    kernels: tuple[CatalogKernel, ...]


class OperationStatus(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OperationReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A long piece of work. `url` + "/events" streams it; `result` is its answer, once it has one."""

    id: str
    kind: str  # vm.create, vm.start, …
    status: OperationStatus
    url: str
    created_at: datetime
    updated_at: datetime
    vm_id: str = ""  # the VM it works on, as soon as that is known
    result: dict[str, object] | None = None
    error: ErrorBody | None = None


class OperationList(msgspec.Struct, frozen=True, kw_only=True):
    operations: tuple[OperationReply, ...]


class EventKind(StrEnum):
    STEP = "step"  # a named step has begun
    PROGRESS = "progress"  # the same step goes on: message, current, total
    WARNING = "warning"
    RESULT = "result"  # the last line of one that succeeded
    ERROR = "error"  # the last line of one that failed or was cancelled
    HEARTBEAT = "heartbeat"  # nothing new; carries the last number again


class OperationEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of an operation's stream. seq counts from 1; the ring may have lost the oldest."""

    seq: int
    time: datetime
    op_id: str
    kind: EventKind
    step: str = ""
    message: str = ""
    current: int | None = None
    total: int | None = None
    vm_id: str = ""
    result: dict[str, object] | None = None
    error: ErrorBody | None = None


class ExecDefaults(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an exec uses where the caller says nothing. Empty: the agent's own default."""

    cwd: str = ""
    user: str = ""
    env: dict[str, str] = {}


class ConnectReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the guest's agent is: connect to vsock_path, send `CONNECT <port>\\n`, read `OK <n>\\n`."""

    id: str
    name: str
    vm_dir: str
    vsock_path: str
    port: int
    exec: ExecDefaults
    workspace: Workspace | None = None  # the repository that was brought into the guest


class WorkList(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept, of VMs that are there and of those that are gone."""

    work: tuple[Work, ...]


class LeaseLine(msgspec.Struct, frozen=True, kw_only=True):
    """The one line of a lease's stream; the connection itself is the lease."""

    vm_id: str
    leased: bool


class StatsReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A VM's figures, taken now. Of a dead VM only the bytes that its disks take on the host.

    guest: as its agent says; absent of a dead VM and where the agent did not say within 2 s.
    """

    id: str
    name: str
    state: VMState
    stats: VMStats
    guest: GuestFigures | None = None


class SessionList(msgspec.Struct, frozen=True, kw_only=True):
    sessions: tuple[GuestSession, ...]


class AuditFinding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An object on the host that nothing explains."""

    kind: str  # tap bridge nft loop dm mount process socket folder file port
    name: str
    problem: str
    vm_id: str = ""
    fixable: bool = False  # it carries this instance's mark: repair removes it
    fixed: bool = False
    failure: str = ""  # why repair could not remove it


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    findings: tuple[AuditFinding, ...]


class Stopping(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/daemon/stop: the daemon is on its way out; its VMs run on."""

    pid: int
