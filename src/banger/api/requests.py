"""What a client may ask for: the bodies of /v1 requests. Unknown fields are refused.

Read by the daemon's routes and the services they call. The CLI and the client never import this
(msgspec costs more than a call): they send plain dicts of the same shape, which docs/api.md documents.
"""

from __future__ import annotations

import msgspec


class PublishPort(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TCP port of the guest's, and where on the host it is reached."""

    guest_port: int
    host_port: int = 0  # 0: a free one is chosen, and kept
    host_address: str = "127.0.0.1"  # IPv4 or IPv6; 0.0.0.0 is every address of the host's


class Owner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who asks: what their new VM's /root gets of theirs.

    uid: whose home file_sync means where the daemon is root's (a user's daemon knows no other than its own).
    git_name, git_email: user.name and user.email of their git, for the guest's; "" for none.
    """

    uid: int | None = None
    git_name: str = ""
    git_email: str = ""


class CreateVM(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms. None or "" means: the default (SPEC §1)."""

    name: str = ""
    image: str = ""
    vcpu_count: int | None = None
    memory_mib: int | None = None
    work_disk_size_bytes: int | None = None
    system_overlay_size_bytes: int | None = None
    nat: bool | None = None
    init: str = ""  # "" or "auto", "agent", or a path in the image
    auto_remove: bool = False
    start: bool = True
    publish: tuple[PublishPort, ...] = ()
    owner: Owner | None = None


class StartVM(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms/{vm}/start: an empty object, or no body."""


class StopVM(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms/{vm}/stop: an empty object, or no body."""


class RestartVM(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms/{vm}/restart: an empty object, or no body."""


class KillVM(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms/{vm}/kill."""

    signal: str = "TERM"  # TERM KILL INT HUP QUIT USR1 USR2 ABRT, with or without SIG


class SetVM(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PATCH /v1/vms/{vm}. None means: as it is."""

    vcpu_count: int | None = None
    memory_mib: int | None = None
    work_disk_size_bytes: int | None = None
    nat: bool | None = None


class PublishPorts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms/{vm}/publish. What is published already is no error, and tried again if nobody listens."""

    ports: tuple[PublishPort, ...]


class UnpublishPort(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """null means: any."""

    host_port: int
    host_address: str | None = None
    guest_port: int | None = None


class UnpublishPorts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms/{vm}/unpublish: these, each of which must be published, or all."""

    ports: tuple[UnpublishPort, ...] = ()
    all: bool = False


class WhyNet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms/{vm}/net/why: whom the guest should reach. port 0: an echo (ping), no connection."""

    host: str  # a name, or an IPv4 address
    port: int = 0
    protocol: str = "tcp"  # tcp | udp


class SetWorkspace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PUT /v1/vms/{vm}/workspace: what was brought into the guest, as Workspace has it but for the time.

    refs: the names of what travelled (`HEAD`, `heads/main`, `tags/v1`, `stash`, `index`, …), and their ids.
    """

    source_path: str
    repo_root: str
    repo_name: str
    guest_path: str  # /root/repo
    mode: str  # shallow_overlay | full_copy | metadata_only
    head_commit: str  # ids in full, 40 or 64 hex digits
    base_commit: str
    brought_commit: str
    current_branch: str = ""
    branch_name: str = ""
    readonly: bool = False
    include_untracked: bool = False
    refs: dict[str, str] = {}


class KeepWork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms/{vm}/workspace/keep."""

    ignored: bool = False  # files that git ignores as well


class PackWork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/work/{work}/pack: have are commits whose history the client has, and need not be sent."""

    have: tuple[str, ...] = ()


class ConnectVM(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms/{vm}/connect: what the connection is for is what touches the VM."""

    purpose: str = "exec"  # exec | shell | cp | session


class StartSession(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms/{vm}/sessions. "" means: a name is made up, the agent's own folder and user."""

    command: tuple[str, ...]
    name: str = ""
    env: dict[str, str] = {}
    cwd: str = ""
    user: str = ""
    tags: dict[str, str] = {}
    stdin: str = "closed"  # closed | pipe
    terminal: bool = False
    rows: int = 0
    cols: int = 0


class RegistryCredential(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A login: username and password, or an identity_token, or a registry_token. Never kept or logged."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return "RegistryCredential(…)"


class PullImage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/images/pull: a name of the catalog, an image's reference, or a file on the daemon's host.

    name: the image's here, "" for one made from the reference; with file, reference says which image of it.
    credentials: by registry (`host[:port]`), for this pull only.
    """

    reference: str = ""
    file: str = ""
    name: str = ""
    kernel: str = ""
    size_bytes: int | None = None
    credentials: dict[str, RegistryCredential] = {}


class RegisterImage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/images/register: absolute paths on the daemon's host. kernel: an uncompressed vmlinux."""

    name: str
    rootfs: str
    kernel: str
    initrd: str = ""
    modules: str = ""


class ImportKernel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/kernels/import: folder is on the daemon's host, with a vmlinux or a bzImage in it."""

    name: str
    folder: str


class PruneCache(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/images/cache/prune."""

    dry_run: bool = False  # only say what would go


class SignalSession(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms/{vm}/sessions/{session}/signal: to the command's process group."""

    signal: str = "TERM"  # a name, with or without SIG, or a number from 1 to 64


class StopSession(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/vms/{vm}/sessions/{session}/stop: TERM, and KILL after so many seconds."""

    timeout_s: float = 10.0


class StopDaemon(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/daemon/stop."""

    if_idle: bool = False  # refuse (busy) while an operation runs
