"""What a VM gets that nobody asked for: config, then the host, then built in (SPEC §1, Defaults).

Daemon-side (it makes records). Pure: the host's size is handed in, and the
configured values come as anything with the fields of config's [vm_defaults]. Every value keeps its
origin, so that an error or a listing can say where it came from.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from banger.model.records import VMSpec
from banger.model.sizes import (
    MIB,
    MIN_MEMORY,
    check_disk_size,
    check_memory_mib,
    check_vcpu_count,
    format_size,
)

REQUESTED, CONFIGURED, HOST, BUILT_IN = "request", "config", "host", "built-in"
"""The origins a value may have, the first that has one wins."""

MAX_DEFAULT_VCPU = 4
MAX_DEFAULT_MEMORY_MIB = 8192
_BUILT_IN = VMSpec()


class ConfiguredDefaults(Protocol):
    """The fields of [vm_defaults] (config.settings.VMDefaults); None is: not configured. Sizes in bytes."""

    @property
    def vcpu(self) -> int | None: ...
    @property
    def memory_mib(self) -> int | None: ...
    @property
    def disk_size(self) -> int | None: ...
    @property
    def system_overlay_size(self) -> int | None: ...
    @property
    def nat(self) -> bool | None: ...


class HostCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """The host's size; 0 where it is not known, then the built-in default stands."""

    cpus: int = 0
    memory_bytes: int = 0


class ResolvedSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A whole spec, and for each of its field names where the value came from."""

    spec: VMSpec
    origins: dict[str, str]

    def line(self) -> str:
        """What `vm run` and `vm create` print before progress starts."""
        return spec_line(self.spec)


def resolve_spec(
    configured: ConfiguredDefaults,
    host: HostCapacity,
    *,
    vcpu_count: int | None = None,
    memory_mib: int | None = None,
    work_disk_size_bytes: int | None = None,
    system_overlay_size_bytes: int | None = None,
    nat: bool | None = None,
) -> ResolvedSpec:
    """The spec for a request; None is: not asked for.

    All values are checked, whatever their origin: BangerError INVALID_ARGUMENT.
    """
    origins: dict[str, str] = {}

    def pick(field: str, *offers: tuple[str, int | None]) -> int:
        for origin, value in offers:
            if value is not None:
                origins[field] = origin
                return value
        raise AssertionError(f"{field} has no built-in default")

    vcpu = pick(
        "vcpu_count",
        (REQUESTED, vcpu_count),
        (CONFIGURED, configured.vcpu),
        (HOST, host_vcpu(host)),
        (BUILT_IN, _BUILT_IN.vcpu_count),
    )
    memory = pick(
        "memory_mib",
        (REQUESTED, memory_mib),
        (CONFIGURED, configured.memory_mib),
        (HOST, host_memory_mib(host)),
        (BUILT_IN, _BUILT_IN.memory_mib),
    )
    overlay = pick(
        "system_overlay_size_bytes",
        (REQUESTED, system_overlay_size_bytes),
        (CONFIGURED, configured.system_overlay_size),
        (BUILT_IN, _BUILT_IN.system_overlay_size_bytes),
    )
    disk = pick(
        "work_disk_size_bytes",
        (REQUESTED, work_disk_size_bytes),
        (CONFIGURED, configured.disk_size),
        (BUILT_IN, _BUILT_IN.work_disk_size_bytes),
    )
    wants_nat = pick(
        "nat_enabled", (REQUESTED, nat), (CONFIGURED, configured.nat), (BUILT_IN, _BUILT_IN.nat_enabled)
    )
    spec = VMSpec(
        vcpu_count=vcpu,
        memory_mib=memory,
        system_overlay_size_bytes=overlay,
        work_disk_size_bytes=disk,
        nat_enabled=bool(wants_nat),
    )
    validate_spec(spec)
    return ResolvedSpec(spec=spec, origins=origins)


def validate_spec(spec: VMSpec) -> VMSpec:
    """The spec, unchanged, when every value is in range; INVALID_ARGUMENT otherwise."""
    check_vcpu_count(spec.vcpu_count)
    check_memory_mib(spec.memory_mib)
    check_disk_size(spec.system_overlay_size_bytes, what="system overlay size")
    check_disk_size(spec.work_disk_size_bytes)
    return spec


def host_vcpu(host: HostCapacity) -> int | None:
    """A quarter of the host's CPUs, 1 to 4."""
    return min(max(host.cpus // 4, 1), MAX_DEFAULT_VCPU) if host.cpus > 0 else None


def host_memory_mib(host: HostCapacity) -> int | None:
    """An eighth of the host's memory, at most 8 GiB, and no less than a VM may have."""
    if host.memory_bytes <= 0:
        return None
    return min(max(host.memory_bytes // 8 // MIB, MIN_MEMORY // MIB), MAX_DEFAULT_MEMORY_MIB)


def spec_line(spec: VMSpec) -> str:
    """`spec: 4 vcpu | 8192 MiB | 8G disk`"""
    disk = format_size(spec.work_disk_size_bytes)
    return f"spec: {spec.vcpu_count} vcpu | {spec.memory_mib} MiB | {disk} disk"
