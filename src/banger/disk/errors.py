"""Errors of the disk room."""

from __future__ import annotations

from banger.errors import BangerError, ErrorCode


class DiskError(BangerError):
    """A disk cannot be made, attached or let go."""

    def __init__(
        self, brief: str, *, code: ErrorCode = ErrorCode.HOST_UNSUITABLE, hint: str | None = None
    ) -> None:
        super().__init__(code, brief, hint=hint)
