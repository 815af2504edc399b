"""Questions about objects to one `git cat-file` in a guest that lives on between them.

Used by GuestRepository, one question at a time: a start of git costs an emulated guest a good part of a
second, a line nothing. git looks again for what it has not found before, so that objects made meanwhile are
seen. At most one such git lives in a guest for each keep; with its connection it is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from banger.guest.stream import ExecStream, Stderr, Stdout
from banger.workspace.errors import GitFailed
from banger.workspace.repository import LISTING, STDERR_LENGTH

Start = Callable[[], Awaitable[ExecStream]]


class Lookup:
    """Closed by its owner. The deadline is the caller's."""

    def __init__(self) -> None:
        self._stream: ExecStream | None = None
        self._of: object = None

    async def ask(self, of: object, start: Start, names: Sequence[bytes]) -> list[bytes]:
        """A line for each name. of: the repository; where another was asked before, git is started anew."""
        if self._of is not of:
            await self.aclose()
        try:
            if self._stream is None:
                self._stream, self._of = await start(), of
            return await self._exchange(self._stream, names)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Idempotent."""
        stream, self._stream, self._of = self._stream, None, None
        if stream is not None:
            await stream.aclose()

    @staticmethod
    async def _exchange(stream: ExecStream, names: Sequence[bytes]) -> list[bytes]:
        asked = b"".join(name + b"\n" for name in names)
        feeding = asyncio.create_task(stream.send_stdin(asked), name="guest git lookup")
        try:
            answers = await _answers(stream, len(names))
            await feeding  # all of it, or the next question would begin in the middle of this one
            return answers
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


async def _answers(stream: ExecStream, count: int) -> list[bytes]:
    held, stderr, missing = bytearray(), bytearray(), count
    while missing > 0:
        event = await anext(stream)
        if isinstance(event, Stdout):
            held += event.data
            missing -= event.data.count(b"\n")
            if len(held) > LISTING:
                raise GitFailed("cat-file", f"said more than {LISTING} bytes")
        elif isinstance(event, Stderr):
            stderr += event.data
            del stderr[:-STDERR_LENGTH]
        else:
            details = bytes(stderr).decode("utf-8", "replace").strip()
            raise GitFailed("cat-file", "ended before it had answered", details=details)
    lines = bytes(held).split(b"\n")
    if missing or lines.pop():
        raise GitFailed("cat-file", "answered nonsense")
    return lines
