"""The end of a log that a guest may have filled: bounded and escaped, for error messages."""

from __future__ import annotations

_READ_LIMIT = 16 * 1024


def tail(path: str, *, lines: int) -> str:
    """The last lines, control characters escaped; "" when there is nothing to show."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _READ_LIMIT))
            data = file.read(_READ_LIMIT)
    except OSError:
        return ""
    text = data.decode("utf-8", "backslashreplace")
    kept = [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()][-lines:]
    return "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in kept)
