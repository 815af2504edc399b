"""Between records and columns: times as RFC 3339 text, the parts of a record as JSON.

Only store/'s tables use it. A stored part that lacks a field reads as empty, one that has a field
of a newer banger's is read without it. Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from banger.errors import ErrorCode
from banger.store.errors import StoreError

S = TypeVar("S", bound=msgspec.Struct)

_encoder = msgspec.json.Encoder()


def time_text(moment: datetime) -> str:
    """UTC, whole seconds: sorts as text as it does as time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def text_time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def json_text(part: msgspec.Struct) -> str:
    """StoreError INVALID_ARGUMENT for a text inside that is not UTF-8, or a number JSON cannot carry."""
    try:
        return _encoder.encode(part).decode()
    except (UnicodeEncodeError, OverflowError, TypeError) as error:
        raise StoreError(
            ErrorCode.INVALID_ARGUMENT,
            f"a {type(part).__name__} cannot be stored: {_ascii(error)}",
        ) from error


def json_part(text: str, kind: type[S], *, of: str) -> S:
    """StoreError when it is not what banger wrote. of: whose it is, for the message."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StoreError(
            ErrorCode.STORE_ERROR,
            f"the database's entry of {of} is damaged: {_ascii(error)}",
            hint="correct it with sqlite3 while the daemon is stopped, or put a backup in place",
        ) from error


def _ascii(error: Exception) -> str:
    return str(error).encode("ascii", "backslashreplace").decode()[:300]
