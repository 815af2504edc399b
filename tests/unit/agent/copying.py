"""Copies against an agent on this host, and trees to compare: what tests of both ends share."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Any

from banger.client.client import Client
from tests.unit.agent.conftest import Agent

TEMPORARY = r"\.banger-cp-[0-9a-f]{16}-[0-9a-f]+$"


class AgentsClient(Client):
    """A client whose only VM is this agent; no daemon anywhere."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(autostart=False)
        self._folder = agent.vm_dir

    def connect_vm(self, reference: str, *, purpose: str = "exec") -> Any:
        return {"vsock_path": f"{self._folder}/v.sock", "port": 1024, "name": reference}


def tree(top: Path | str, *, owners: bool = True, times: bool = True) -> dict[bytes, tuple[object, ...]]:
    """All that a copy keeps, by path: kind and mode, owner, time, content or target, who shares an inode."""
    root = os.fsencode(top)
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[tuple[int, int], bytes] = {}
    stack = [root]
    while stack:
        path = stack.pop()
        status = os.lstat(path)
        name = os.path.relpath(path, root)
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = (status.st_size, hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest())
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISDIR(status.st_mode):
            stack += [os.path.join(path, below) for below in sorted(os.listdir(path), reverse=True)]
        elif not stat.S_ISFIFO(status.st_mode):
            content = status.st_rdev
        shared: object = None
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            shared = inodes.setdefault((status.st_dev, status.st_ino), name)
        found[name] = (
            status.st_mode,
            (status.st_uid, status.st_gid) if owners else None,
            status.st_mtime_ns if times else None,
            content,
            shared,
        )
    return found


def leftovers(folder: Path) -> list[str]:
    """Temporary names of copies anywhere below."""
    return [str(path) for path in folder.rglob(".banger-cp-*") if re.match(TEMPORARY, path.name)]
