"""The marks that say whose an object on the host is (SPEC §1). Pure.

A link's alias: `banger:<instance>:<vm id or ->:<role>`. A dm uuid: `BANGER-<instance>-<vm id>`.
A bridge also has its own MAC.
A tap also has the instance's link group.
An nft table: `banger_<instance>`. A loop: its backing file's place, and its
label `banger:<instance>:<first 32 of the vm id>`, as many VMs have loops over one image. A process: its cwd.
"""

from __future__ import annotations

import re
import secrets

_ALIAS = re.compile(r"banger:([0-9a-f]{16}):([0-9a-f]{64}|-):(bridge|tap|pool)")


def link_alias(instance: str, vm_id: str, role: str) -> str:
    return f"banger:{instance}:{vm_id or '-'}:{role}"


def parse_link_alias(alias: str) -> tuple[str, str, str] | None:
    """(instance, vm_id or "", role), None for an alias that is no mark."""
    match = _ALIAS.fullmatch(alias)
    return (match[1], "" if match[2] == "-" else match[2], match[3]) if match else None


def bridge_mac(instance: str) -> str:
    """The bridge's MAC from its birth on: locally administered, and the instance's first octets.

    A bridge cannot be born with an alias; by this, one that a crash left without can be told. It also
    keeps the bridge's MAC from changing with its ports.
    """
    return ":".join(["06:01", *(instance[i : i + 2] for i in range(0, 8, 2))])


def link_group(instance: str) -> int:
    """The link group of an instance's taps: by it the firewall tells them before their names mean anything
    (`meta ibrname` would, but needs a module that not every kernel has)."""
    return int(instance[:8], 16) & 0x3FFFFFFF | 0x40000000


def dm_uuid(instance: str, vm_id: str) -> str:
    return f"BANGER-{instance}-{vm_id}"


_LOOP = re.compile(r"banger:([0-9a-f]{16}):([0-9a-f]{32})")
BASE = "-base"
"""Behind a VM's dm name and uuid: the device below its snapshot."""


def loop_label(instance: str, vm_id: str) -> str:
    """56 bytes; a loop's label has room for 63."""
    return f"banger:{instance}:{vm_id[:32]}"


def parse_loop_label(label: str) -> tuple[str, str] | None:
    """(instance, first 32 of the VM id), None for a label that is no mark."""
    match = _LOOP.fullmatch(label)
    return (match[1], match[2]) if match else None


def nft_table(instance: str) -> str:
    return f"banger_{instance}"


_NFT = re.compile(r"banger_[0-9a-f]{16}")


def is_nft_table(name: str) -> bool:
    """Some instance's."""
    return _NFT.fullmatch(name) is not None


def is_nft_namesake(name: str) -> bool:
    """banger's name, but no instance's."""
    named = name == "banger" or name.startswith("banger_")
    return named and not _NFT.fullmatch(name) and not is_trace_table(name)


_TRACE = re.compile(r"banger_([0-9a-f]{16})_why[0-9a-f]{8}")


def trace_table(instance: str) -> str:
    """A new one, for one trace of `net why`."""
    return f"banger_{instance}_why{secrets.token_hex(4)}"


def is_trace_table(name: str, instance: str = "") -> bool:
    """Of this instance; of some instance's where none is named."""
    match = _TRACE.fullmatch(name)
    return match is not None and instance in ("", match[1])
