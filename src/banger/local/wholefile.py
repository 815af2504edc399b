"""A file of the user's that is written whole or not at all. As the user (under sudo: as the caller).

Beside its place first, then renamed there; what is no regular file (a pipe, /dev/null) is written to as it
is. A crash leaves the file beside it, `.NAME.banger-XXXXXXXX`. Used by the CLI.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable

from banger.errors import BangerError, ErrorCode
from banger.local.account import Account, this_account
from banger.local.asuser import acting_as


def write_whole(path: str, pieces: Iterable[bytes], *, account: Account | None = None) -> int:
    """Bytes written. BangerError where it cannot be, and what `pieces` raises; then the file is as it was."""
    account = this_account() if account is None else account
    try:
        with acting_as(account):
            place = os.path.realpath(path)
            beside = _beside(place)
            flags = os.O_WRONLY | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if beside else os.O_APPEND)
            descriptor = os.open(beside or place, flags, 0o666)
        try:
            count = 0
            with open(descriptor, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                    count += len(piece)
            if beside:
                with acting_as(account):
                    os.rename(beside, place)
        except BaseException:
            if beside:
                with acting_as(account), contextlib.suppress(OSError):
                    os.unlink(beside)
            raise
    except OSError as error:
        code = ErrorCode.NO_SPACE if error.errno in (28, 122) else ErrorCode.INVALID_ARGUMENT
        raise BangerError(code, f"{path!a} cannot be written: {error.strerror or error}") from error
    return count


def _beside(place: str) -> str:
    """Where to write first; "" for what is no regular file."""
    try:
        info = os.stat(place)
    except FileNotFoundError:
        info = None
    if info is not None and stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(21, "it is a folder", place)
    if info is not None and not stat.S_ISREG(info.st_mode):
        return ""
    folder, name = os.path.split(place)
    return f"{folder}/.{name[:200]}.banger-{secrets.token_hex(4)}"
