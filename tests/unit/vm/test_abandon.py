"""A start that failed is torn down whole, whatever of it cannot be closed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from banger.model.deadlines import USUAL
from banger.model.states import VMState
from banger.vm.lifecycle import Lifecycle
from banger.vm.live import LiveMachines
from banger.vm.services import Services
from banger.vm.start import Start
from banger.vm.subject import Subject

pytestmark = pytest.mark.anyio


class Closing:
    def __init__(self, done: list[str], name: str) -> None:
        self.done, self.name = done, name

    async def close(self) -> None:
        self.done.append(self.name)
        raise OSError(5, f"{self.name} would not")

    aclose = close


class Row:
    """As much of a Subject as the end of a start asks for."""

    name = "calm-otter"

    def __init__(self) -> None:
        self.said: tuple[VMState, str] | None = None
        self.cleared = False

    async def set_state(self, state: VMState, *, last_error: str) -> None:
        self.said = (state, last_error)

    async def clear_handles(self) -> None:
        self.cleared = True


async def test_everything_is_attempted_and_every_error_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    row = Row()
    lifecycle = Lifecycle(
        cast(Services, SimpleNamespace(deadlines=USUAL, capabilities=())), cast(LiveMachines, None)
    )

    async def undo(_subject: Subject) -> list[tuple[str, BaseException]]:
        done.append("undo")
        return []

    monkeypatch.setattr(lifecycle, "_undo", undo)
    start = SimpleNamespace(subject=row, machine=Closing(done, "machine"), ready=Closing(done, "ready"))
    failures = await lifecycle._abandon(cast(Start, start), ValueError("first"))
    assert done == ["machine", "ready", "undo"]
    assert [str(failure) for failure in failures] == [
        "[Errno 5] machine would not",
        "[Errno 5] ready would not",
    ]
    assert row.said is not None
    state, why = row.said
    assert state is VMState.ERROR
    assert "first" in why
    assert "machine would not" in why
    assert "ready would not" in why
    assert not row.cleared  # a repeat finishes it
