"""This instance: its folders, private and ours, and its id, the mark on everything it makes (SPEC §1).

Used by the daemon before anything else. The id is 16 hex digits in STATE_DIR/instance, made once by whoever
comes first. A crash while it is made leaves a file instance.<random>.tmp, which nothing reads.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat

from banger.config.paths import Paths
from banger.errors import BangerError, ErrorCode

_ID = re.compile(r"[0-9a-f]{16}")


def instance_id(state_dir: str) -> str:
    """Read it, or make it, 0600. Blocking, quick. INVALID_CONFIG for a file that holds something else."""
    path = f"{state_dir}/instance"
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    temporary = f"{path}.{secrets.token_hex(8)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(descriptor, f"{secrets.token_hex(8)}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # unlike rename, it never replaces another's
    finally:
        os.unlink(temporary)
    return _read(path)


def ensure_folders(paths: Paths) -> None:
    """Make the state, cache and runtime folders, 0700. Raises as private_folder does."""
    for path in (paths.state_dir, paths.cache_dir, paths.runtime_dir):
        private_folder(path)


def private_folder(path: str) -> None:
    """Make the folder, or make an old one private: 0700.

    HOST_UNSUITABLE when it cannot be, when it belongs to another user, or when others could write to it
    (what is in it by now may be theirs).
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BangerError(
            ErrorCode.HOST_UNSUITABLE,
            f"the folder {path} cannot be used: {error.strerror}",
            hint="set BANGER_HOME to a folder of your own",
            data={"path": path},
        ) from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise BangerError(
                ErrorCode.HOST_UNSUITABLE,
                f"the folder {path} belongs to another user (uid {status.st_uid})",
                hint="run banger as that user, or set BANGER_HOME to a folder of your own",
                data={"path": path},
            )
        if status.st_mode & 0o022:
            raise BangerError(
                ErrorCode.HOST_UNSUITABLE,
                f"others can write to the folder {path} (mode {stat.S_IMODE(status.st_mode):04o})",
                hint=f"look at what is in it, then: chmod 700 {path}",
                data={"path": path},
            )
        if status.st_mode & 0o077:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


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
