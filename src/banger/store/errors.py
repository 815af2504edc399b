"""The store's errors: what SQLite and the file system say, in words of banger's.

Every sqlite3 exception that leaves store/ has been through `explain`.
"""

from __future__ import annotations

import errno
import sqlite3

from banger.errors import BangerError, ErrorCode


class StoreError(BangerError):
    """The database cannot be used, or not for this. code is STORE_ERROR unless another fits better."""


_DAMAGED = {"SQLITE_CORRUPT", "SQLITE_NOTADB"}
_LOCKED = {"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"}
_FORBIDDEN = {"SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_CANTOPEN"}


def explain(error: Exception, path: str) -> StoreError:
    """The StoreError for an exception that the database at `path` gave."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, UnicodeEncodeError):
        return StoreError(
            ErrorCode.INVALID_ARGUMENT,
            "a text that is not UTF-8 cannot be stored",
            details=f"{ascii(error.object)[:200]}: {error.reason}",
        )
    if isinstance(error, OSError):
        return _explain_os(error, path)
    name = getattr(error, "sqlite_errorname", "")
    said = f"{type(error).__name__}: {error}" + (f" ({name})" if name else "")
    # extended codes are the primary one's name and more: SQLITE_BUSY_SNAPSHOT, SQLITE_IOERR_WRITE
    if _is(name, {"SQLITE_FULL"}):
        return no_space(path, said)
    if _is(name, _DAMAGED) or (
        not name and isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error)
    ):
        return damaged(path, said)
    if _is(name, _LOCKED):
        return StoreError(
            ErrorCode.STORE_ERROR,
            f"the database {path} is locked by another program",
            details=said,
            hint="close what has it open (sqlite3, a backup) and try again",
        )
    if _is(name, _FORBIDDEN):
        return StoreError(
            ErrorCode.STORE_ERROR,
            f"the database {path} cannot be opened for writing",
            details=said,
            hint="its folder and it must belong to you and be writable",
        )
    if _is(name, {"SQLITE_IOERR"}):
        return StoreError(
            ErrorCode.STORE_ERROR,
            f"the database {path} cannot be read or written",
            details=said,
            hint="the disk, or its quota, may be full, or it may be failing: see df and dmesg",
        )
    return StoreError(ErrorCode.STORE_ERROR, f"the database {path} failed: {error}", details=said)


def damaged(path: str, said: str) -> StoreError:
    return StoreError(
        ErrorCode.STORE_ERROR,
        f"the database {path} is damaged, or not a database",
        details=said,
        hint="move it away with its -wal and -shm files, or put a backup in its place (banger.db.v*.bak)",
    )


def no_space(path: str, said: str) -> StoreError:
    return StoreError(
        ErrorCode.NO_SPACE,
        f"no space left to write the database {path}",
        details=said,
        hint="make room on that file system and repeat",
    )


def _explain_os(error: OSError, path: str) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space(path, str(error))
    return StoreError(
        ErrorCode.STORE_ERROR,
        f"{error.filename or path}: {error.strerror or error}",
        details=str(error),
        hint="its folder and it must belong to you and be writable",
    )


def _is(name: str, primaries: set[str]) -> bool:
    return any(name == primary or name.startswith(f"{primary}_") for primary in primaries)
