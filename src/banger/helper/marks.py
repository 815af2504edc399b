"""The marks that say whose an object on the host is (SPEC §1). Pure.

A link's alias: `banger:<instance>:<vm id or ->:<role>`. A dm uuid: `BANGER-<instance>-<vm id>`.
An nft table: `banger_<instance>`. A loop: its backing file's place. A process: its cwd.
"""

from __future__ import annotations

import re

_ALIAS = re.compile(r"banger:([0-9a-f]{16}):([0-9a-f]{64}|-):(bridge|tap|pool)")


def link_alias(instance: str, vm_id: str, role: str) -> str:
    return f"banger:{instance}:{vm_id or '-'}:{role}"


def parse_link_alias(alias: str) -> tuple[str, str, str] | None:
    """(instance, vm_id or "", role), None for an alias that is no mark."""
    match = _ALIAS.fullmatch(alias)
    return (match[1], "" if match[2] == "-" else match[2], match[3]) if match else None


def dm_uuid(instance: str, vm_id: str) -> str:
    return f"BANGER-{instance}-{vm_id}"


def nft_table(instance: str) -> str:
    return f"banger_{instance}"
