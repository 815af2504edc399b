"""This instance's id: the mark on everything it makes on the host (SPEC §1).

16 hex digits in STATE_DIR/instance, made once, atomically, by whoever comes first.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets

from banger.errors import BangerError, ErrorCode

_ID = re.compile(r"[0-9a-f]{16}")


def instance_id(state_dir: str) -> str:
    """Read it, or make it. Blocking, quick. Raises INVALID_CONFIG for a file that holds something else."""
    path = f"{state_dir}/instance"
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    temporary = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{secrets.token_hex(8)}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    with contextlib.suppress(FileExistsError):
        os.link(temporary, path)  # unlike rename, it never replaces another's
    os.unlink(temporary)
    return _read(path)


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        text = file.read(64).strip()
    if not _ID.fullmatch(text):
        raise BangerError(
            ErrorCode.INVALID_CONFIG,
            f"{path} does not hold an instance id",
            hint="move it away; a new one is made",
        )
    return text
