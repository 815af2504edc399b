"""The shapes of what the daemon answers, for type checkers only: never imported at run time.

docs/api.md has the same, made from the daemon's own Structs. total=False: empty fields are left out.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class PublishedPort(TypedDict):
    host_address: str
    host_port: int
    guest_port: int


class PublishedState(PublishedPort, total=False):
    listening: bool
    problem: str


class SpecRequired(TypedDict):
    vcpu_count: int
    memory_mib: int
    system_overlay_size_bytes: int
    work_disk_size_bytes: int
    nat_enabled: bool


class Owner(TypedDict, total=False):
    uid: int
    git_name: str
    git_email: str


class Spec(SpecRequired, total=False):
    published: list[PublishedPort]
    owner: Owner | None


class Runtime(TypedDict, total=False):
    state: str
    guest_ip: str
    vm_dir: str
    vsock_path: str
    log_path: str
    dns_name: str
    last_error: str
    published: list[PublishedState]


class Workspace(TypedDict, total=False):
    vm_id: str
    source_path: str
    repo_root: str
    repo_name: str
    guest_path: str
    mode: str
    readonly: bool
    head_commit: str
    current_branch: str
    branch_name: str
    base_commit: str
    brought_commit: str
    include_untracked: bool
    prepared_at: str


class KeptRefRequired(TypedDict):
    name: str
    commit: str


class KeptRef(KeptRefRequired, total=False):
    """name and subject come from a guest."""

    subject: str


class WorkChanges(TypedDict, total=False):
    ahead: int
    staged: int
    unstaged: int
    untracked: int
    conflicts: int


class WorkRequired(TypedDict):
    vm_id: str
    vm_name: str
    workspace: Workspace


class Work(WorkRequired, total=False):
    """What is kept of a VM's workspace."""

    vm_exists: bool
    kept_at: str
    how: str
    changed: bool
    head: str
    branch: str
    changes: WorkChanges
    refs: list[KeptRef]
    cut: list[str]
    notes: list[str]
    files_only: str


class VMRequired(TypedDict):
    id: str
    name: str
    image_id: str
    state: str
    created_at: str
    updated_at: str
    last_touched_at: str
    spec: Spec
    runtime: Runtime


class Stats(TypedDict, total=False):
    collected_at: str
    cpu_percent: float
    rss_bytes: int
    vsz_bytes: int
    system_overlay_bytes: int
    work_disk_bytes: int
    metrics_raw: dict[str, Any]


class GuestFigures(TypedDict, total=False):
    uptime_s: int
    load1: float
    memory_total_kib: int
    memory_available_kib: int
    root_total_bytes: int
    root_free_bytes: int
    work_total_bytes: int
    work_free_bytes: int


class VMStatsRequired(TypedDict):
    id: str
    name: str
    state: str
    stats: Stats


class VMStats(VMStatsRequired, total=False):
    guest: GuestFigures


class PortRequired(TypedDict):
    protocol: str
    address: str
    port: int
    uid: int


class Port(PortRequired, total=False):
    pid: int
    process: str
    endpoint: str
    url: str


class PortsRequired(TypedDict):
    vm_id: str
    name: str
    ports: list[Port]


class Ports(PortsRequired, total=False):
    left_out: int
    published: list[PublishedState]


class NetStageRequired(TypedDict):
    name: str
    mark: str


class NetStage(NetStageRequired, total=False):
    words: str


class NetRuleRequired(TypedDict):
    family: str
    table: str
    chain: str
    verdict: str


class NetRule(NetRuleRequired, total=False):
    handle: int
    rule: str


class NetWhyRequired(TypedDict):
    vm_id: str
    name: str
    host: str
    protocol: str
    through: bool
    cause: str
    sentence: str
    stages: list[NetStage]


class NetWhy(NetWhyRequired, total=False):
    address: str
    port: int
    remedy: str
    rule: NetRule
    milliseconds: float


class HealthRequired(TypedDict):
    vm_id: str
    name: str
    state: str
    healthy: bool


class Health(HealthRequired, total=False):
    uptime_s: int
    phase: str
    init: str
    load1: float
    memory_total_kib: int
    memory_available_kib: int
    root_total_bytes: int
    root_free_bytes: int
    work_total_bytes: int
    work_free_bytes: int
    running_sessions: int


class SessionRequired(TypedDict):
    id: str
    vm_id: str
    name: str
    status: str


class Session(SessionRequired, total=False):
    backend: str
    attach_backend: str
    attach_mode: str
    command: str
    args: list[str]
    left_out: int
    cwd: str
    user: str
    env: dict[str, str]
    stdin_mode: str
    exit_code: int
    exit_signal: int
    guest_pid: int
    guest_state_dir: str
    stdout_log_path: str
    stderr_log_path: str
    stdout_bytes: int
    stderr_bytes: int
    readers: int
    writer: bool
    tags: dict[str, str]
    last_error: str
    attachable: bool
    reattachable: bool
    launch_stage: str
    launch_message: str
    launch_raw_log: str
    created_at: str
    started_at: str
    updated_at: str
    ended_at: str


class FindingRequired(TypedDict):
    kind: str
    name: str
    problem: str


class Finding(FindingRequired, total=False):
    vm_id: str
    fixable: bool
    fixed: bool
    failure: str


class VM(VMRequired, total=False):
    image: str
    auto_remove: bool
    stats: Stats
    workspace: Workspace


class ImageRequired(TypedDict):
    id: str
    name: str
    created_at: str
    updated_at: str


class Image(ImageRequired, total=False):
    managed: bool
    docker: bool
    build_size: int
    recipe: str
    oci_reference: str
    oci_digest: str
    entrypoint: list[str]
    cmd: list[str]
    env: list[str]
    workdir: str
    user: str


class CatalogImage(TypedDict):
    name: str
    kind: str
    source: str
    description: str
    here: bool


class CachePruned(TypedDict):
    blobs: int
    freed_bytes: int
    in_use: int


class Kernel(TypedDict):
    name: str
    distro: str
    arch: str
    kernel_version: str
    sha256: str
    source: str
    imported_at: str


class CatalogKernel(TypedDict):
    name: str
    distro: str
    suite: str
    here: bool


class Info(TypedDict):
    api: str
    version: str
    pid: int
    instance: str
    features: list[str]
    started_at: str
    running_operations: int
    warnings: list[str]


class ExecDefaults(TypedDict, total=False):
    cwd: str
    user: str
    env: dict[str, str]


class Connect(TypedDict):
    id: str
    name: str
    vm_dir: str
    vsock_path: str
    port: int
    exec: ExecDefaults
    workspace: NotRequired[Workspace | None]


class OperationRequired(TypedDict):
    id: str
    kind: str
    status: str
    url: str


class Operation(OperationRequired, total=False):
    vm_id: str
    result: dict[str, Any]
    error: dict[str, Any]


class EventRequired(TypedDict):
    seq: int
    time: str
    op_id: str
    kind: str


class Event(EventRequired, total=False):
    step: str
    message: str
    current: int
    total: int
    vm_id: str
    result: dict[str, Any]
    error: dict[str, Any]
