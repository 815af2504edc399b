"""The signals that `vm kill --signal` may send."""

from __future__ import annotations

import signal

from banger.errors import BangerError, ErrorCode

ALLOWED = ("TERM", "KILL", "INT", "HUP", "QUIT", "USR1", "USR2", "ABRT")


def parse_signal(name: str) -> int:
    """`TERM`, `SIGTERM` or `term` → its number; INVALID_ARGUMENT for any other."""
    plain = name.strip().upper().removeprefix("SIG")
    if plain not in ALLOWED:
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT, f"unknown signal {name!r}", hint=f"one of {' '.join(ALLOWED)}"
        )
    return int(signal.Signals[f"SIG{plain}"])
