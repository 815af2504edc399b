"""Token buckets: how many queries each asker may send, so that one guest's storm is its own trouble.

One bucket per source address; a bounded number of them, the longest unheard is forgotten first (and would
have been full again, or is a forger's). Memory only.
"""

from __future__ import annotations

import time
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
