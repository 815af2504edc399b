"""What the daemon says is kept of a guest's work, made safe for a repository of the user's. Pure.

Names and ids are the guest's: a name becomes a ref only as `git check-ref-format` allows it, an id is hex of
the right length, and there is a bound on each and on how many there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from banger.errors import BangerError, ErrorCode
from banger.model.names import name_fault

MOST_TIPS = 20_000
MOST_NAME_BYTES = 1_000
MOST_COMPONENT_BYTES = 240
"""A loose ref is a file, and its lock that file with `.lock`: 255 bytes is what file systems take."""
OLD = "old/"
_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BAD = re.compile(rb"[\x00-\x20\x7f~^:?*\[\\]")


class WorkRefused(BangerError):
    """What came of the guest's work is not what it should be; nothing of the user's was touched."""

    def __init__(self, brief: str, *, hint: str | None = None, details: str | None = None) -> None:
        super().__init__(ErrorCode.GUEST_ERROR, brief, hint=hint, details=details)


class Kept(NamedTuple):
    """vm_name: a valid name. tips: the ref's name below refs/banger/<vm_name>/ to its full object id.
    base: where the guest's branch began, "" unknown. cut: commits whose parents are not in the store."""

    vm_name: str
    tips: dict[str, str]
    base: str = ""
    cut: tuple[str, ...] = ()
    head: str = ""
    branch: str = ""


def ref_fault(name: str) -> str:
    """Why `refs/x/<name>` is no ref that we would make; "" when it is one."""
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if not raw or len(raw) > MOST_NAME_BYTES:
        return "it is empty" if not raw else f"it is longer than {MOST_NAME_BYTES} bytes"
    if _BAD.search(raw) or b".." in raw or b"@{" in raw or raw == b"@" or raw.endswith(b"."):
        return "git allows no such name"
    for part in raw.split(b"/"):
        if not part or part.startswith(b".") or part.endswith(b".lock"):
            return "git allows no such name"
        if len(part) > MOST_COMPONENT_BYTES:
            return f"a part of it is longer than {MOST_COMPONENT_BYTES} bytes"
    return ""


def is_id(text: object) -> bool:
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def read_kept(work: Mapping[str, object]) -> Kept:
    """The daemon's Work (docs/api.md). Raises WorkRefused."""
    vm_name = str(work.get("vm_name", ""))
    fault = name_fault(vm_name)
    if fault:
        raise WorkRefused(f"the work is of no VM: {fault}")
    workspace = work.get("workspace")
    brought: Mapping[str, object] = workspace if isinstance(workspace, dict) else {}
    refs = work.get("refs", ())
    listed: Sequence[object] = refs if isinstance(refs, list | tuple) else ()
    if len(listed) > MOST_TIPS:
        raise WorkRefused(f"the work in {vm_name} has {len(listed)} refs, more than {MOST_TIPS}")
    tips: dict[str, str] = {}
    for entry in listed:
        ref: Mapping[str, object] = entry if isinstance(entry, dict) else {}
        name, commit = str(ref.get("name", "")), ref.get("commit")
        fault = ref_fault(name) if name not in tips else "it is there twice"
        if fault:
            raise WorkRefused(f"the work in {vm_name} has a ref {name[:200]!a}: {fault}")
        if not is_id(commit):
            raise WorkRefused(f"the work in {vm_name} has a ref {name[:200]!a} to {str(commit)[:80]!a}")
        tips[name] = str(commit)
    _check_folders(vm_name, tips)
    cut = work.get("cut", ())
    cuts = tuple(one for one in cut if is_id(one)) if isinstance(cut, list | tuple) else ()
    base, head, branch = brought.get("base_commit", ""), work.get("head", ""), str(work.get("branch", ""))
    return Kept(
        vm_name,
        tips,
        base=str(base) if is_id(base) else "",
        cut=cuts[:MOST_TIPS],
        head=str(head) if is_id(head) else "",
        branch="" if ref_fault(branch) or branch.startswith("-") else branch,
    )


def _check_folders(vm_name: str, tips: Mapping[str, str]) -> None:
    for name in tips:
        parts = name.split("/")
        for length in range(1, len(parts)):
            above = "/".join(parts[:length])
            if above in tips:
                raise WorkRefused(f"the work in {vm_name} has the refs {above!a} and {name[:200]!a}")
