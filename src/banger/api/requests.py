"""What a client may ask for: the bodies of /v1 requests. Unknown fields are refused."""

from __future__ import annotations

import msgspec


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


class StopVM(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class KillVM(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    signal: str = "TERM"  # TERM KILL INT HUP QUIT USR1 USR2 ABRT, with or without SIG


class SetVM(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    vcpu_count: int | None = None
    memory_mib: int | None = None
    work_disk_size_bytes: int | None = None
    nat: bool | None = None
