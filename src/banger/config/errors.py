"""Errors of the configuration: always with the file, and the line where it can be had."""

from __future__ import annotations

from banger.errors import BangerError, ErrorCode


class ConfigError(BangerError):
    """code is INVALID_CONFIG; data has file, line (0: not known) and key."""

    def __init__(
        self, file: str, brief: str, *, line: int = 0, key: str = "", hint: str | None = None
    ) -> None:
        place = f"{file}:{line}" if line else file
        super().__init__(
            ErrorCode.INVALID_CONFIG,
            f"{place}: {brief}",
            hint=hint,
            data={"file": file, "line": line, "key": key},
        )


class Fault(Exception):
    """What is wrong with one value. The reader adds where: it never leaves config/."""

    def __init__(self, brief: str, hint: str | None = None) -> None:
        super().__init__(brief)
        self.brief = brief
        self.hint = hint
