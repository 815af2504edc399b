"""Errors of the privileged operations."""

from __future__ import annotations

from banger.errors import BangerError, ErrorCode


class Refused(BangerError):
    """An argument that the helper does not take from anyone, the daemon included."""

    def __init__(self, brief: str) -> None:
        super().__init__(ErrorCode.PERMISSION_DENIED, brief)


class NotOurs(BangerError):
    """An object has the name, but not this instance's mark: it is another's and is left alone."""

    def __init__(self, brief: str, *, hint: str | None = None) -> None:
        super().__init__(ErrorCode.BUSY, brief, hint=hint)
