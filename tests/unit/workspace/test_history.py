"""What follows from a listing of commits: against git's own word for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banger.workspace.history import History, read_history
from tests.unit.workspace.guestgit import Guest

pytestmark = pytest.mark.anyio


async def test_as_git_counts(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    base = guest.brought.base_commit
    guest.git("checkout", "-q", "-b", "side")
    side = guest.commit("side", s="s\n")
    guest.git("checkout", "-q", "main")
    ours = guest.commit("ours", o="o\n")
    guest.git("merge", "-q", "--no-edit", "side")
    merged = guest.git("rev-parse", "HEAD")
    guest.git("checkout", "-q", "--orphan", "root")
    root = guest.commit("root", r="r\n")
    found = await read_history(guest.live(), [merged], [root], without=[base], heads=False, need_whole=True)
    assert found.commits == {merged: (ours, side), ours: (base,), side: (base,), root: ()}
    assert found.reached([ours, base]) == {ours}
    assert found.beside([side]) == [merged, root] or found.beside([side]) == [root, merged]
    assert found.beside([merged]) == [root]
    assert found.cuts([merged]) == frozenset({base})
    assert found.cuts([merged, root]) == frozenset({base, root})
    assert found.cuts([base]) == frozenset({base})


@given(st.dictionaries(st.integers(0, 12), st.lists(st.integers(0, 14), max_size=3)), st.data())
@settings(max_examples=100, deadline=None)
def test_any_graph(links: dict[int, list[int]], data: st.DataObject) -> None:
    """Also one that no git has: with circles."""
    commits = {str(commit): tuple(map(str, parents)) for commit, parents in links.items()}
    history = History(commits)
    tips = data.draw(st.lists(st.sampled_from([*commits, "away"]), max_size=3))
    reached = history.reached(tips)
    assert reached <= commits.keys()
    for commit in reached:
        assert {parent for parent in commits[commit] if parent in commits} <= reached
    cuts = history.cuts(tips)
    assert cuts is not None
    assert all(cut in tips or cut in reached or any(cut in commits[c] for c in reached) for cut in cuts)
    assert not set(history.beside(tips)) & reached
    assert History(commits, whole=False).cuts(tips) is None
