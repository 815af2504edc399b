"""Old snapshots are thinned by their age; nothing that was committed in a guest ever is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.workspace.store import WorkStore
from banger.workspace.thin import STAMP, snapshot_name, staying, thinned
from tests.unit.workspace.guestgit import Guest, Kept

NOW = datetime(2026, 11, 21, 16, 20, 30, tzinfo=UTC)
AGES = st.integers(0, 4 * 366 * 86400) | st.integers(0, 3 * 86400) | st.integers(0, 3 * 3600)
MOMENTS = st.sets(AGES.map(lambda age: NOW - timedelta(seconds=age)), max_size=60)
LATER = AGES.map(lambda age: NOW + timedelta(seconds=age))


@given(MOMENTS)
def test_the_newest_and_the_last_hour_stay(moments: set[datetime]) -> None:
    kept = staying(moments, NOW)
    assert kept <= moments
    assert {one for one in moments if NOW - one <= timedelta(hours=1)} <= kept
    if moments:
        assert max(moments) in kept


@given(MOMENTS)
def test_one_stays_of_each_hour_day_and_month(moments: set[datetime]) -> None:
    kept = staying(moments, NOW)
    for one in moments:
        age = NOW - one
        form = "%Y%m%d%H" if age <= timedelta(days=1) else "%Y%m%d" if age <= timedelta(days=30) else "%Y%m"
        assert any(other >= one and other.strftime(form) == one.strftime(form) for other in kept)


@given(MOMENTS, LATER)
def test_thinning_often_is_as_thinning_once(moments: set[datetime], later: datetime) -> None:
    kept = staying(moments, NOW)
    assert staying(kept, NOW) == kept
    at_last = staying(moments, later)
    assert at_last <= kept
    assert staying(kept, later) == at_last


@given(MOMENTS, st.sets(LATER, max_size=5))
def test_what_comes_drops_nothing_of_other_times(moments: set[datetime], new: set[datetime]) -> None:
    """Newer ones replace at most the one of their own hour, day or month."""
    now = NOW + timedelta(days=1)
    before = staying(moments, now)
    assert len(before - staying(moments | new, now)) <= len(new)


def test_rounds_for_a_year_leave_few() -> None:
    moments = {NOW - timedelta(seconds=180 * number) for number in range(365 * 480)}
    assert len(staying(moments, NOW)) < 40 + 48 + 62 + 12


def test_a_clock_that_was_wrong_drops_nothing() -> None:
    ahead = {NOW + timedelta(days=400, minutes=number) for number in range(5)} | {
        datetime.max.replace(tzinfo=UTC)
    }
    assert staying(ahead, NOW) == ahead


SNAPSHOTS = ("worktree", "index", "sub/a/worktree", "sub/a%20b/c/index")
BRANCHES = ("heads/worktree", "tags/index", "sub/a/heads/worktree", "heads/old/worktree", "notes/worktree")
OTHERS = ("HEAD", "stash", "reflog/0123456789ab", "other/index", "worktree-1", "sub/worktree")
NAMES = st.sampled_from([*SNAPSHOTS, *BRANCHES, *OTHERS])


@given(st.sets(st.tuples(AGES, NAMES), max_size=60), st.sets(NAMES))
def test_only_snapshots_below_old_go(old: set[tuple[int, str]], current: set[str]) -> None:
    names = {f"old/{(NOW - timedelta(seconds=age)).strftime(STAMP)}/{name}" for age, name in old} | current
    names |= {"old/whatever/worktree", "old/20260231T000000Z/worktree", "old/worktree"}
    gone = thinned(names, NOW)
    assert gone <= names - current - {"old/whatever/worktree", "old/20260231T000000Z/worktree"}
    for name in gone:
        inside = name.split("/", 2)[2]
        assert snapshot_name(inside)
        assert inside in SNAPSHOTS
        newer = {one for one in names - gone if one.endswith(f"/{inside}") and one > name}
        assert any(one.split("/", 2)[2] == inside for one in newer if one.startswith("old/"))


class Clock:
    """The store's time, which goes on as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = self
        self.now = datetime(2026, 3, 2, 12, 0, 5, tzinfo=UTC)

        class Then(datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
                return clock.now

        monkeypatch.setattr("banger.workspace.store.datetime", Then)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def stamps(refs: dict[str, str], name: str = "worktree") -> list[str]:
    return sorted(
        ref.split("/")[1] for ref in refs if ref.startswith("old/") and ref.split("/", 2)[2] == name
    )


async def written(guest: Guest, kept: Kept, text: str) -> str:
    """The snapshot of these files."""
    guest.write("a", text)
    await kept.keep(guest.live(), guest.brought)
    return (await kept.current())["worktree"]


@pytest.mark.limit(300)
@pytest.mark.anyio
async def test_snapshots_of_rounds_are_thinned_and_packed_away(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("banger.workspace.store.MAX_PACKS", 5)
    guest, kept = Guest(tmp_path), Kept(tmp_path)
    made = []
    for number in range(12):
        clock.now += timedelta(minutes=20)
        made.append(await written(guest, kept, f"{number}\n"))
    # old since 12:40, 13:00 … 16:00: hours that ended an hour ago have one left
    assert stamps(await kept.store.refs()) == [
        f"20260302T{moment}05Z" for moment in ("1240", "1340", "1440", "1500", "1520", "1540", "1600")
    ]
    before = await kept.store.refs()
    await kept.keep(guest.live(), guest.brought)
    assert await kept.store.refs() == before
    clock.now += timedelta(days=3)
    await kept.keep(guest.live(), guest.brought)  # without news, too
    assert stamps(await kept.store.refs()) == ["20260302T160005Z"]
    assert (await kept.current())["worktree"] == made[-1]
    for number in range(7):
        await written(guest, kept, f"more {number}\n")
    kept.git("cat-file", "-e", made[0], fails=True)
    kept.git("cat-file", "-e", made[-2])
    kept.whole()


@pytest.mark.anyio
async def test_commits_that_only_a_thinned_snapshot_had_stay(tmp_path: Path, clock: Clock) -> None:
    guest, kept = Guest(tmp_path), Kept(tmp_path)
    first = guest.commit("first", b="1\n")
    guest.git("branch", "worktree")
    guest.write("staged", "s\n")
    guest.git("add", "staged")
    one = await written(guest, kept, "dirty 1\n")
    clock.now += timedelta(minutes=5)
    two = await written(guest, kept, "dirty 2\n")
    guest.git("reset", "-q", "--hard")
    guest.git("branch", "-D", "worktree")
    guest.git("commit", "-q", "--amend", "-m", "amended")
    guest.git("reflog", "expire", "--expire=now", "--all")
    (guest.folder / ".git/ORIG_HEAD").unlink()
    clock.now += timedelta(minutes=5)
    await written(guest, kept, "dirty 3\n")
    assert set(stamps(await kept.store.refs())) == {"20260302T120505Z", "20260302T121005Z"}
    for number in range(3):
        clock.now += timedelta(hours=30)
        await written(guest, kept, f"later {number}\n")
    everything = set(kept.git("rev-list", "--all").split())
    assert first in everything
    assert one not in everything
    clock.now += timedelta(days=200)
    await written(guest, kept, "much later\n")
    assert two not in set((await kept.store.refs()).values())
    assert (f"reflog/{first[:12]}", first) in await kept.old()
    assert first in set(kept.git("rev-list", "--all").split())
    kept.whole()


@pytest.mark.anyio
async def test_what_a_preparation_replaced_stays(tmp_path: Path, clock: Clock) -> None:
    guest, kept = Guest(tmp_path), Kept(tmp_path)
    await written(guest, kept, "1\n")
    clock.now += timedelta(minutes=1)
    last = await written(guest, kept, "2\n")
    clock.now += timedelta(minutes=1)
    await kept.store.retire()
    retired = stamps(await kept.store.refs())[-1]
    for number in range(3):
        clock.now += timedelta(minutes=1)
        await written(guest, kept, f"again {number}\n")
    clock.now += timedelta(days=500)
    await written(guest, kept, "at last\n")
    refs = await kept.store.refs()
    assert refs[f"old/{retired}/worktree"] == last
    assert len(stamps(refs)) == 3  # that one, the month's newest, and what is old since now
    kept.whole()


@pytest.mark.anyio
async def test_files_that_come_back_are_kept_for_when_they_were_last_there(
    tmp_path: Path, clock: Clock
) -> None:
    guest, kept = Guest(tmp_path), Kept(tmp_path)
    one = await written(guest, kept, "1\n")
    clock.now += timedelta(minutes=3)
    await written(guest, kept, "2\n")
    clock.now += timedelta(minutes=3)
    assert await written(guest, kept, "1\n") == one
    clock.now += timedelta(hours=5)
    await written(guest, kept, "3\n")
    refs = await kept.store.refs()
    assert [name for name, commit in refs.items() if commit == one] == ["old/20260302T170605Z/worktree"]
    kept.whole()


@pytest.mark.anyio
async def test_a_crash_while_thinning_loses_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, kept = Guest(tmp_path), Kept(tmp_path)
    for number in range(4):
        await written(guest, kept, f"{number}\n")
    clock.now += timedelta(days=3)
    before = await kept.store.refs()

    async def update(_store: WorkStore, lines: list[str]) -> None:
        if any(line.startswith("delete ") for line in lines):
            raise OSError

    with monkeypatch.context() as patched:
        patched.setattr(WorkStore, "_update", update)
        with pytest.raises(OSError):
            await kept.keep(guest.live(), guest.brought)
    assert await kept.store.refs() == before
    await kept.keep(guest.live(), guest.brought)
    assert len(stamps(await kept.store.refs())) == 1
