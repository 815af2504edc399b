"""Errors of the network room."""

from __future__ import annotations

from banger.errors import BangerError, ErrorCode


class NetworkError(BangerError):
    """The bridge, a tap or an address cannot be had."""

    def __init__(
        self, brief: str, *, code: ErrorCode = ErrorCode.HOST_UNSUITABLE, hint: str | None = None
    ) -> None:
        super().__init__(code, brief, hint=hint)
