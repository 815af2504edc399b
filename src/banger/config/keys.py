"""Every key of config.toml: its check, its default and what it means. The one list of them.

config/toml.py reads a file by it, and docs/config.md is made from it. A test compares it with Settings.
"""

from __future__ import annotations

from typing import NamedTuple

from banger.config import checks
from banger.config.checks import Check


class Key(NamedTuple):
    """name: in the file. field: in the record. kind, default, doc: for the reference."""

    name: str
    field: str
    check: Check
    kind: str
    default: str
    doc: str
    required: bool = False


class Table(NamedTuple):
    """A `[name]` table, or with `many` a `[[name]]` list of them; field: in Settings."""

    name: str
    field: str
    many: bool
    doc: str
    keys: tuple[Key, ...]


_DURATION = "duration"
_PATH = "path"
_FLAG = "true or false"

TOP: tuple[Key, ...] = (
    Key(
        "log_level",
        "log_level",
        checks.log_level,
        "debug, info, warning, error",
        "info",
        "How much the daemon's log says. The environment's `BANGER_LOG_LEVEL` wins.",
    ),
    Key(
        "vmm",
        "vmm",
        checks.one_of("auto", "firecracker", "qemu"),
        "auto, firecracker, qemu",
        "auto",
        "The machine monitor. `auto` takes Firecracker where it and a usable KVM are there, else QEMU.",
    ),
    Key(
        "firecracker_bin",
        "firecracker_bin",
        checks.optional_path,
        _PATH,
        "from PATH",
        "The Firecracker program.",
    ),
    Key("qemu_bin", "qemu_bin", checks.optional_path, _PATH, "from PATH", "The QEMU program."),
    Key(
        "jailer_enabled",
        "jailer_enabled",
        checks.no_jailer,
        _FLAG,
        "false",
        "Refused until the jailer is there.",
    ),
    Key("jailer_bin", "jailer_bin", checks.no_jailer, _PATH, "none", "Refused until the jailer is there."),
    Key(
        "jailer_chroot_base",
        "jailer_chroot_base",
        checks.no_jailer,
        _PATH,
        "none",
        "Refused until the jailer is there.",
    ),
    Key(
        "ssh_key_path",
        "ssh_key_path",
        checks.optional_path,
        _PATH,
        "in the state folder",
        "The private ssh key whose public half guests authorise; made when it is missing.",
    ),
    Key(
        "default_image_name",
        "default_image_name",
        checks.image_name,
        "name",
        "debian-bookworm",
        "The image of a VM for which none is named.",
    ),
    Key(
        "auto_stop_stale_after",
        "auto_stop_stale_after_s",
        checks.duration(),
        _DURATION,
        "0",
        "Stop VMs that nobody used for so long; `0` never does.",
    ),
    Key(
        "stats_poll_interval",
        "stats_poll_interval_s",
        checks.duration(checks.MIN_POLL_S),
        _DURATION,
        "10s",
        "How often the figures of live VMs are taken; at least 100ms.",
    ),
    Key(
        "metrics_poll_interval",
        "metrics_poll_interval_s",
        checks.duration(checks.MIN_POLL_S),
        _DURATION,
        "15s",
        "How often the monitor's own metrics are flushed and read; at least 100ms.",
    ),
    Key(
        "bridge_name",
        "bridge_name",
        checks.bridge_name,
        "interface name",
        "br-fc",
        "The bridge that guests are on. Two instances never share one.",
    ),
    Key(
        "bridge_ip",
        "bridge_ip",
        checks.bridge_ip,
        "IPv4 address",
        "172.16.0.1",
        "The host's address on the bridge: the guests' gateway and name server.",
    ),
    Key(
        "cidr",
        "cidr",
        checks.whole_between(8, 30),
        "8 to 30",
        "24",
        "The prefix length of the guests' network; it bounds the number of VMs.",
    ),
    Key(
        "tap_pool_size",
        "tap_pool_size",
        checks.whole_between(0, checks.MAX_POOL),
        f"0 to {checks.MAX_POOL}",
        "4",
        "Idle tap devices kept ready; `0` keeps none.",
    ),
    Key(
        "default_dns",
        "default_dns",
        checks.dns_server,
        "IPv4 address",
        "1.1.1.1",
        "Asked for names outside `.vm`, for guests with NAT, where the host's `resolv.conf` has no server.",
    ),
    Key(
        "dns_listen",
        "dns_listen",
        checks.listen_address,
        "address:port",
        "127.0.0.1:42069",
        "Where the host asks banger for `<name>.vm`, by UDP and TCP (docs/names.md).",
    ),
    Key(
        "root_disk",
        "root_disk",
        checks.one_of("auto", "reflink", "guest-overlay", "dm-snapshot"),
        "auto, reflink, guest-overlay, dm-snapshot",
        "auto",
        "How a VM's `/` is copied on write. `auto`: reflink where the file system can, else guest-overlay.",
    ),
    Key(
        "network_isolation",
        "network_isolation",
        checks.flag,
        _FLAG,
        "true",
        "Guests do not reach each other; docs/network.md has what they reach besides.",
    ),
    Key(
        "host_access",
        "host_access",
        checks.ports,
        "list of ports",
        "[]",
        "TCP and UDP ports of the host, on the bridge's address, that guests may reach.",
    ),
    Key(
        "debian_mirror",
        "debian_mirror",
        checks.optional_url,
        "URL",
        "the host's apt's",
        "The Debian archive that kernels, images and tools come from.",
    ),
)

TABLES: tuple[Table, ...] = (
    Table(
        "vm_defaults",
        "vm_defaults",
        False,
        "What a VM gets that nobody asked for. Unset: from the host, else built in.",
        (
            Key("vcpu", "vcpu", checks.vcpu, "1 to 32", "a quarter of the host's, 1 to 4", "Virtual CPUs."),
            Key(
                "memory_mib",
                "memory_mib",
                checks.memory_mib,
                "MiB",
                "an eighth of the host's, at most 8192",
                "Memory; at least 128.",
            ),
            Key(
                "disk_size", "disk_size", checks.disk_size, "size", "8G", "The work disk, mounted at `/root`."
            ),
            Key(
                "system_overlay_size",
                "system_overlay_size",
                checks.disk_size,
                "size",
                "8G",
                "What `/` offers beside the image.",
            ),
            Key("nat", "nat", checks.flag, _FLAG, "false", "The way out of the host, through its address."),
        ),
    ),
    Table(
        "tooling",
        "tooling",
        False,
        "Where guests get mise from, which installs the tools that a repository names "
        "(docs/workspaces.md). Used where the image has no mise of its own.",
        (
            Key(
                "mise_url",
                "mise_url",
                checks.url_template,
                "URL",
                "none",
                "A static mise program, as its project releases it; `{arch}` in it becomes `x64` or `arm64`.",
            ),
            Key("mise_sha256", "mise_sha256", checks.sha256, "64 hex digits", "none", "What it has to be."),
        ),
    ),
    Table(
        "registry",
        "registries",
        True,
        "How an image registry is reached, when not over https at its own name.",
        (
            Key("host", "host", checks.registry_host, "host or host:port", "required", "The registry.", True),
            Key("insecure", "insecure", checks.flag, _FLAG, "false", "http, or https with any certificate."),
            Key("mirror", "mirror", checks.registry_mirror, "URL or host", "none", "Asked first."),
        ),
    ),
    Table(
        "catalog",
        "catalog",
        True,
        "Images of a registry that have a name here, beside those of the built-in catalog: "
        "`image list --available` has them, `image pull NAME` and `vm run --image NAME` get them. "
        "One with a built-in name takes its place.",
        (
            Key("name", "name", checks.catalog_name, "name", "required", "What it is called.", True),
            Key(
                "reference",
                "reference",
                checks.pinned_reference,
                "reference@sha256:…",
                "required",
                "As docker names it, pinned by its digest. Another digest later is another image: "
                "the next pull gets it.",
                True,
            ),
            Key("description", "description", checks.text, "text", "none", "What the list says of it."),
        ),
    ),
    Table(
        "file_sync",
        "file_sync",
        True,
        "Files of the host that a new VM's `/root` gets, once, when its work disk is made. "
        "A missing one is skipped with a warning, and so are symlinks. No `..`, no relative path, no "
        "`~user`. All of it: docs/files.md.",
        (
            Key(
                "host",
                "host",
                checks.synced_path,
                _PATH,
                "required",
                "File or folder, absolute or `~/…`: in the home of who makes the VM.",
                True,
            ),
            Key("guest", "guest", checks.guest_path, "~/…", "required", "Its place in the guest.", True),
            Key(
                "mode",
                "mode",
                checks.mode,
                'octal text, "0600"',
                "0600, folders 0755",
                "Permissions of the file, or of the files in the folder.",
            ),
        ),
    ),
)
