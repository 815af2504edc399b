"""Durations as Go writes them: `24h`, `2h30m`, `1.5s`, `0` (SPEC §7). In seconds (float) inside.

Units: ns, us (µs), ms, s, m, h. Imports nothing but errors.py. Pure.
"""

from __future__ import annotations

from banger.errors import BangerError, ErrorCode

MAX_DURATION_S = float((1 << 63) // 1_000_000_000)
"""About 292 years: what Go's own int64 of nanoseconds holds."""

_UNITS_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,  # micro sign
    "μs": 1e-6,  # Greek mu
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DIGITS = frozenset("0123456789")
_HINT = "a duration is for example 10s, 1.5s, 2h30m, 24h or 0"
_MAX_LENGTH = 100


def parse_duration(text: str, *, what: str) -> float:
    """Seconds of a Go duration, never negative. BangerError INVALID_ARGUMENT for anything else."""
    trimmed = text.strip()
    if not trimmed:
        raise _fault(f"{what}: the duration is missing")
    if len(trimmed) > _MAX_LENGTH:
        raise _fault(f"{what}: the duration is {len(trimmed)} characters long")
    if trimmed[0] == "-":
        raise _fault(f"{what}: {trimmed!a} is negative")
    rest = trimmed[1:] if trimmed[0] == "+" else trimmed
    if rest == "0":
        return 0.0
    if not rest:
        raise _fault(f"{what}: {trimmed!a} is not a duration")
    total = 0.0
    while rest:
        number, rest = _take(rest, numeric=True)
        unit, rest = _take(rest, numeric=False)
        if number.count(".") > 1 or not number.strip("."):
            raise _fault(f"{what}: {trimmed!a} is not a duration")
        if not unit:
            raise _fault(f"{what}: {trimmed!a} has no unit after {number}")
        if unit not in _UNITS_S:
            raise _fault(f"{what}: {trimmed!a} has an unknown unit {unit!a}")
        total += float(number) * _UNITS_S[unit]
    if total > MAX_DURATION_S:
        raise _fault(f"{what}: {trimmed!a} is too long")
    return total


def format_duration(seconds: float) -> str:
    """The shortest usual spelling: 0, 1.5s, 2h30m. Below a millisecond is rounded."""
    milliseconds = round(seconds * 1000)
    if milliseconds <= 0:
        return "0"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    if milliseconds:
        whole, fraction = divmod(milliseconds, 1000)
        text = f"{whole}.{fraction:03}".rstrip("0").rstrip(".")
        parts.append(f"{text}s")
    return "".join(parts)


def _take(text: str, *, numeric: bool) -> tuple[str, str]:
    """The leading number (digits and dots), or the leading unit (all else), and what follows."""
    end = 0
    while end < len(text) and (text[end] in _DIGITS or text[end] == ".") is numeric:
        end += 1
    return text[:end], text[end:]


def _fault(brief: str) -> BangerError:
    return BangerError(ErrorCode.INVALID_ARGUMENT, brief, hint=_HINT)
