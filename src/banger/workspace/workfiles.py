"""The two records beside a store: `brought.json`, what a preparation brought, and `work.json`, what is kept.

Used by WorkspaceService. Written whole or not at all; a mark `moving` says that refs may be newer than
work.json, for whoever opens after a crash. A record of an older banger's lacks fields, which read as empty.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from banger.errors import BangerError, ErrorCode
from banger.model.records import Workspace
from banger.model.work import Work
from banger.workspace.packs import write_whole

S = TypeVar("S", bound=msgspec.Struct)

_MOVING = "moving"


class BroughtRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """refs: KeptRef names -> ids as they were when they were brought."""

    vm_name: str
    workspace: Workspace
    refs: Mapping[str, str] = {}


class WorkRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """tree: of the files as last kept. disk: (mtime_ns, size, inode) of the work disk that was read last.

    ignored: whether that had the ignored files.
    """

    work: Work
    tree: str = ""
    disk: tuple[int, int, int] | None = None
    ignored: bool = False


def read_brought(folder: str) -> BroughtRecord | None:
    content = _content(f"{folder}/brought.json")
    return _decoded(content, BroughtRecord, folder) if content is not None else None


def read_work(folder: str) -> WorkRecord | None:
    content = _content(f"{folder}/work.json")
    return _decoded(content, WorkRecord, folder) if content is not None else None


def write_brought(folder: str, record: BroughtRecord) -> None:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    write_whole(f"{folder}/brought.json", msgspec.json.encode(record))


def write_work(folder: str, record: WorkRecord) -> None:
    """And with it what the refs are is known again."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    write_whole(f"{folder}/work.json", msgspec.json.encode(record))
    if is_moving(folder):
        os.unlink(f"{folder}/{_MOVING}")


def mark_moving(folder: str) -> None:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    write_whole(f"{folder}/{_MOVING}", b"")


def is_moving(folder: str) -> bool:
    return os.path.exists(f"{folder}/{_MOVING}")


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _decoded(content: bytes, kind: type[S], folder: str) -> S:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BangerError(
            ErrorCode.STORE_ERROR,
            f"what is recorded of the work in {folder} is damaged",
            details=str(error).encode("ascii", "backslashreplace").decode()[:300],
            hint=f"its commits are still in {folder}/repo.git, as refs/work/…",
        ) from error
