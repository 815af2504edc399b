"""Which old snapshots stay: closer together the younger they are, as the rounds leave one every 180 s. Pure.

Used by WorkStore. Only banger's own commits of files (`worktree`) and of what is staged (`index`) below
`old/` are ever thinned: each name for itself, by the time in its stamp. Of the newest hour all stay, of the
newest day one an hour, of the newest 30 days one a day, before that one a month, as long as there is a store.

A whole hour, day or month (UTC) is thinned at once, when it ended that long ago. So a little more stays than
was said, and what stays at a time does not depend on how often it was thinned before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from banger.workspace.names import OLD

STAMP = "%Y%m%dT%H%M%SZ"
ALL_FOR = timedelta(hours=1)
HOURLY_FOR = timedelta(days=1)
DAILY_FOR = timedelta(days=30)
_SNAPSHOT = re.compile(r"(sub/.+/)?(?:worktree|index)")
_USERS = re.compile(r"/(?:heads|tags|notes|other)/")
"""A branch in a repository inside may be called `worktree`, too: these are let alone."""


def snapshot_name(name: str) -> bool:
    """Whether a name, without `old/<stamp>/`, is a commit of banger's; False in doubt."""
    return _SNAPSHOT.fullmatch(name) is not None and not _USERS.search(name)


def split_old(name: str) -> tuple[datetime, str] | None:
    """`old/<stamp>/<name>` -> (its time, the name); None for another, or when the stamp is no time."""
    stamp, slash, rest = name.removeprefix(OLD).partition("/")
    if not name.startswith(OLD) or not slash:
        return None
    try:
        return datetime.strptime(stamp, STAMP).replace(tzinfo=UTC), rest
    except ValueError:
        return None


def thinned(names: Iterable[str], now: datetime) -> set[str]:
    """Of KeptRef names those that need not stay. now: with a time zone. The newest of a name stays."""
    lines: dict[str, dict[datetime, str]] = {}
    for name in names:
        found = split_old(name)
        if found is not None and snapshot_name(found[1]):
            lines.setdefault(found[1], {})[found[0]] = name
    going: set[str] = set()
    for line in lines.values():
        going |= {line[moment] for moment in line.keys() - staying(line, now)}
    return going


def staying(moments: Iterable[datetime], now: datetime) -> set[datetime]:
    """Those that stay. now: with a time zone."""
    newest: dict[tuple[str, datetime], datetime] = {}
    for moment in moments:
        place = _place(moment, now)
        newest[place] = max(moment, newest.get(place, moment))
    return set(newest.values())


def _place(moment: datetime, now: datetime) -> tuple[str, datetime]:
    """What it shares with those of which one stays."""
    hour = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    month = day.replace(day=1)
    if moment.year == datetime.max.year:
        return "moment", moment
    for name, begin, end, age in (
        ("month", month, (month + timedelta(days=32)).replace(day=1), DAILY_FOR),
        ("day", day, day + timedelta(days=1), HOURLY_FOR),
        ("hour", hour, hour + timedelta(hours=1), ALL_FOR),
    ):
        if now - end >= age:
            return name, begin
    return "moment", moment
