"""The settings of SPEC §7 as one frozen record, with their built-in defaults.

Pure: what a key means and its default. config/toml.py reads the file, checks it and makes one of these.
"""

from __future__ import annotations

import msgspec


class VMDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """[vm_defaults]; None means: from the host, else built in (SPEC §1)."""

    vcpu: int | None = None
    memory_mib: int | None = None
    disk_size: int | None = None  # bytes
    system_overlay_size: int | None = None  # bytes
    nat: bool | None = None


class Registry(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    insecure: bool = False
    mirror: str = ""


class CatalogImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image of the user's catalog. reference: of a registry, with the digest that it is."""

    name: str
    reference: str
    description: str = ""


class FileSync(msgspec.Struct, frozen=True, kw_only=True):
    """host: absolute, or `~/…` in the home of the VM's owner. guest: `~/…`. mode: of files; None is 0600."""

    host: str
    guest: str
    mode: int | None = None


class Tooling(msgspec.Struct, frozen=True, kw_only=True):
    """[tooling]. mise_url: `{arch}` in it is x64 or arm64. mise_sha256: 64 hex digits."""

    mise_url: str = ""
    mise_sha256: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations are in seconds (float), sizes in bytes; 0 or "" where SPEC says off or unset."""

    log_level: str = "info"
    vmm: str = "auto"  # auto | firecracker | qemu
    firecracker_bin: str = ""  # from PATH
    qemu_bin: str = ""  # from PATH
    jailer_enabled: bool = False
    jailer_bin: str = ""
    jailer_chroot_base: str = ""
    ssh_key_path: str = ""
    default_image_name: str = "debian-bookworm"
    auto_stop_stale_after_s: float = 0.0
    stats_poll_interval_s: float = 10.0
    metrics_poll_interval_s: float = 15.0
    bridge_name: str = "br-fc"
    bridge_ip: str = "172.16.0.1"
    cidr: int = 24
    tap_pool_size: int = 4
    default_dns: str = "1.1.1.1"
    dns_listen: str = "127.0.0.1:42069"
    root_disk: str = "auto"  # auto | reflink | guest-overlay | dm-snapshot
    network_isolation: bool = True
    host_access: tuple[int, ...] = ()
    debian_mirror: str = ""
    vm_defaults: VMDefaults = VMDefaults()
    tooling: Tooling = Tooling()
    registries: tuple[Registry, ...] = ()
    catalog: tuple[CatalogImage, ...] = ()
    file_sync: tuple[FileSync, ...] = ()
