"""What each asker may take, so that one guest's storm is its own trouble: queries a second, places at a time.

One token bucket per source address; a bounded number of them, the longest unheard is forgotten first (and
would have been full again, or is a forger's). Places (connections, questions under way) are shared by those
who want some. Memory only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

MOST_SOURCES = 8192


class Buckets:
    def __init__(
        self,
        *,
        per_second: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
        most: int = MOST_SOURCES,
    ) -> None:
        self._rate = per_second
        self._burst = burst
        self._clock = clock
        self._most = most
        self._held: dict[str, tuple[float, float]] = {}

    def take(self, source: str) -> bool:
        """One token of the source's; False when it has none left."""
        now = self._clock()
        tokens, since = self._held.pop(source, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        allowed = tokens >= 1.0
        if len(self._held) >= self._most:
            del self._held[next(iter(self._held))]
        self._held[source] = (tokens - 1.0 if allowed else tokens, now)
        return allowed

    def __len__(self) -> int:
        return len(self._held)


class Places:
    """At most `most` in all and `per_source` of one; the more sources have some, the fewer each gets, so that
    a newcomer finds room beside a few who want all."""

    def __init__(self, *, most: int, per_source: int, least: int = 2) -> None:
        """least: of one source, however many others there are, until all are taken."""
        self._most = most
        self._per_source = per_source
        self._least = least
        self._held: Counter[str] = Counter()

    def reserve(self, source: str) -> bool:
        """One place, to be given back by `release`; False when there is none for this source."""
        share = max(self._least, self._most // 2 // (len(self._held) + 1))
        if self._held.total() >= self._most or self._held[source] >= min(self._per_source, share):
            return False
        self._held[source] += 1
        return True

    def release(self, source: str) -> None:
        self._held[source] -= 1
        if self._held[source] <= 0:
            del self._held[source]

    def held(self, source: str | None = None) -> int:
        """By one source, or by all."""
        return self._held.total() if source is None else self._held[source]
