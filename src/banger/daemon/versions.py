"""Which of two banger versions is the newer one. Pure."""

from __future__ import annotations


def version_key(version: str) -> tuple[int, ...]:
    """The leading numbers: 1.10.2.dev3 → (1, 10, 2). What is no version is ()."""
    numbers: list[int] = []
    for part in version.split("."):
        if not (part.isascii() and part.isdigit() and len(part) <= 9):
            break
        numbers.append(int(part))
    return tuple(numbers)


def is_newer(version: str, than: str) -> bool:
    mine, other = version_key(version), version_key(than)
    return bool(mine) and bool(other) and mine > other
