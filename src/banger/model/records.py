"""What things are: the frozen records of the store and of the wire (SPEC §1).

Field names are the JSON names. Times are UTC whole seconds. Optional fields are left out of JSON
when empty; a stored record of an older version that lacks a field reads as empty. Pure: no I/O.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from banger.model.states import VMState


def now() -> datetime:
    """The current time as records carry it: UTC, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


class PublishedPort(msgspec.Struct, frozen=True, kw_only=True):
    """A TCP port of the host's that leads to one of the guest's, while the VM runs."""

    host_address: str = "127.0.0.1"  # canonical IPv4 or IPv6
    host_port: int
    guest_port: int


class VMOwner(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who made the VM, as their command said. uid: whose files the daemon of the system syncs."""

    uid: int | None = None
    git_name: str = ""
    git_email: str = ""


class VMSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    vcpu_count: int = 2
    memory_mib: int = 2048
    system_overlay_size_bytes: int = 8 << 30
    work_disk_size_bytes: int = 8 << 30
    nat_enabled: bool = False
    published: tuple[PublishedPort, ...] = ()
    owner: VMOwner | None = None


class VMRuntime(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Derived paths and addresses, the last error, and the teardown mirror (the last five fields)."""

    guest_ip: str = ""
    api_sock_path: str = ""
    vsock_path: str = ""
    vsock_cid: int = 0
    log_path: str = ""
    metrics_path: str = ""
    dns_name: str = ""
    vm_dir: str = ""
    system_overlay_path: str = ""
    work_disk_path: str = ""
    last_error: str = ""
    tap_device: str = ""
    base_loop: str = ""
    cow_loop: str = ""
    dm_name: str = ""
    dm_dev: str = ""


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """A process of ours: only (boot id, pid, start time) together name it.

    start_time: field 22 of /proc/PID/stat, in clock ticks since boot.
    """

    role: str  # "monitor", "vsock"
    pid: int
    start_time: int


class VMHandles(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is currently true of a VM on the host. Hints: verified before they are acted on,
    void when boot_id differs from the running kernel's."""

    boot_id: str = ""
    processes: tuple[ProcessIdentity, ...] = ()
    tap_device: str = ""
    base_loop: str = ""
    cow_loop: str = ""
    dm_name: str = ""
    dm_dev: str = ""

    def process(self, role: str) -> ProcessIdentity | None:
        return next((p for p in self.processes if p.role == role), None)

    def is_empty(self) -> bool:
        return not (
            self.processes
            or self.tap_device
            or self.base_loop
            or self.cow_loop
            or self.dm_name
            or self.dm_dev
        )


class VMStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    collected_at: datetime | None = None
    cpu_percent: float | None = None
    rss_bytes: int | None = None
    vsz_bytes: int | None = None
    system_overlay_bytes: int | None = None  # allocated, not apparent
    work_disk_bytes: int | None = None  # allocated, not apparent
    metrics_raw: dict[str, object] | None = None


class VMHealth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the guest's agent says of the guest. Of a dead VM only the first four are there."""

    vm_id: str
    name: str
    state: VMState
    healthy: bool
    uptime_s: int | None = None
    phase: str = ""  # early, handoff, init or shutdown
    init: str = ""  # path of the guest's init, or "agent"
    load1: float | None = None
    memory_total_kib: int | None = None
    memory_available_kib: int | None = None
    root_total_bytes: int | None = None
    root_free_bytes: int | None = None
    work_total_bytes: int | None = None
    work_free_bytes: int | None = None
    running_sessions: int | None = None


class Workspace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The repository that was brought into a guest (SPEC §6).

    head_commit and current_branch are the user's; base_commit and branch_name the guest's ("" when detached).
    brought_commit: its tree is exactly the files that travelled, its parent base_commit.
    """

    vm_id: str = ""
    source_path: str = ""
    repo_root: str = ""
    repo_name: str = ""
    guest_path: str = ""
    mode: str = ""
    readonly: bool = False
    head_commit: str = ""
    current_branch: str = ""
    branch_name: str = ""
    base_commit: str = ""
    brought_commit: str = ""
    include_untracked: bool = False
    prepared_at: datetime | None = None


class VMRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    name: str
    image_id: str
    state: VMState
    created_at: datetime
    updated_at: datetime
    last_touched_at: datetime
    spec: VMSpec
    auto_remove: bool = False
    init: str = ""  # as asked for at create: "" or "auto", "agent", or a path in the image
    runtime: VMRuntime = VMRuntime()
    stats: VMStats = VMStats()
    workspace: Workspace | None = None


class GuestSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A long-lived command in a guest. Kept there, by the agent: nothing of it is in the host's store.

    backend: who runs it; attach_backend: how its streams are reached. attach_mode: `terminal`, `pipe` (two
    streams and stdin) or `output` (stdin is closed). exit_code: absent until known; 128 + n when signal n
    ended it. reattachable: what was missed is replayed.
    """

    id: str  # 32 lower-case hex digits
    vm_id: str
    name: str
    status: str  # starting, running, stopping, exited or failed
    backend: str = ""
    attach_backend: str = ""
    attach_mode: str = ""
    command: str = ""
    args: tuple[str, ...] = ()
    left_out: int = 0  # so many arguments and variables more, where they are too long for a record
    cwd: str = ""
    user: str = ""
    env: dict[str, str] = {}
    stdin_mode: str = ""  # closed or pipe
    exit_code: int | None = None
    exit_signal: int | None = None
    guest_pid: int | None = None
    guest_state_dir: str = ""
    stdout_log_path: str = ""  # in the guest
    stderr_log_path: str = ""
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    readers: int | None = None  # attached now, the writer among them
    writer: bool = False  # one of them may write
    tags: dict[str, str] = {}
    last_error: str = ""
    attachable: bool = False
    reattachable: bool = False
    launch_stage: str = ""  # user, cwd, exec or running
    launch_message: str = ""
    launch_raw_log: str = ""
    created_at: datetime | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None
    ended_at: datetime | None = None


class Image(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    name: str
    created_at: datetime
    updated_at: datetime
    managed: bool = True
    docker: bool = False
    artifact_dir: str = ""
    rootfs_path: str = ""
    work_seed_path: str = ""
    kernel_path: str = ""
    initrd_path: str = ""  # a kernel's own initrd, where it needs one
    modules_dir: str = ""
    build_size: int = 0  # bytes
    seeded_ssh_public_key_fingerprint: str = ""
    recipe: str = ""  # of an image made here: its distribution and release
    # of an image from a registry or an archive; the last five are what its config says
    oci_reference: str = ""
    oci_digest: str = ""  # of this machine's manifest
    oci_pinned: str = ""  # what the reference meant when it was pulled: oci_digest, or an index with it
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()  # `K=V` each
    workdir: str = ""
    user: str = ""


class Kernel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    distro: str
    arch: str
    kernel_version: str
    sha256: str  # of vmlinux
    source: str
    imported_at: datetime
