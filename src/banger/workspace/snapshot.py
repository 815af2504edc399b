"""The snapshot: every commit and file of a repository as tips, its index and refs left untouched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from banger.model.work import WorkChanges
from banger.workspace.repository import Repository


@dataclass(frozen=True, slots=True)
class Brought:
    """What is on the host already. refs: KeptRef names -> ids, `index` a tree's or commit's among them."""

    base_commit: str = ""
    brought_commit: str = ""
    metadata_only: bool = False
    refs: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Snapshot:
    """tips: KeptRef names -> ids, all of them, as brought or not."""

    tips: dict[str, str] = field(default_factory=dict)
    head: str = ""
    branch: str = ""
    changes: WorkChanges = field(default_factory=WorkChanges)
    notes: list[str] = field(default_factory=list)


async def take(repository: Repository, brought: Brought, *, ignored: bool = False) -> Snapshot:
    raise NotImplementedError
