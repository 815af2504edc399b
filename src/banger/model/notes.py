"""Sentences about what could not be had, as many as a person reads. Pure.

Used by readers of strangers' files that go on where something is broken: a hostile file system or archive
could otherwise fill the memory with its complaints.
"""

from __future__ import annotations

MOST = 20


class Notes:
    """add() each, without its full stop; then lines(): the first MOST, and how many more there are."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = 0

    def add(self, sentence: str) -> None:
        if sentence in self._lines:
            return
        if len(self._lines) < MOST:
            self._lines.append(sentence[:500])
        else:
            self._more += 1

    def lines(self) -> tuple[str, ...]:
        more = (f"{self._more} more like these",) if self._more else ()
        return tuple(map(sentence, (*self._lines, *more)))


def sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."
