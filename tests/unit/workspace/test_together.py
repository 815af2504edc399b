"""Questions that are asked at once: nothing of them goes on behind the back of who asked."""

from __future__ import annotations

import asyncio

import pytest

from banger.workspace.errors import GitFailed, NoRepository
from banger.workspace.repository import together

pytestmark = pytest.mark.anyio


async def test_answers() -> None:
    met = asyncio.Barrier(2)

    async def ask(answer: str) -> str:
        await met.wait()
        return answer

    assert await together(ask("a"), ask("b")) == ("a", "b")


async def test_the_first_failure_counts_and_all_have_ended() -> None:
    ended: list[str] = []

    async def late() -> None:
        await asyncio.sleep(0)
        ended.append("late")
        raise NoRepository

    async def early() -> None:
        raise GitFailed("cat-file", "ended")

    with pytest.raises(NoRepository):
        await together(late(), early())
    assert ended == ["late"]


async def test_given_up() -> None:
    began = asyncio.Barrier(3)
    ended: list[str] = []

    async def long(name: str) -> None:
        try:
            await began.wait()
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def both() -> None:
        await together(long("a"), long("b"))

    asking = asyncio.create_task(both())
    await began.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert sorted(ended) == ["a", "b"]
