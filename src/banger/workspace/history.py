"""The commits of a repository that the host has not, asked for once, and what follows from them.

Used by snapshot. What git lists is a guest's word: ids are matched, the listing is bounded, and whoever gets
the objects (packs) finds what is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from banger.workspace.errors import GitFailed
from banger.workspace.repository import Git, listed_commits, outermost

_HEADS = ("--ignore-missing", "--exclude=refs/*", "--all")
"""HEAD and those of the linked work trees, wherever they are. Of one that is damaged, nothing."""


@dataclass(slots=True)
class History:
    """commits: each with its parents. whole: of each that was wanted all ancestors that the host has not."""

    commits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    whole: bool = True

    def reached(self, tips: Iterable[str]) -> set[str]:
        """Those of the commits that the tips reach."""
        found: set[str] = set()
        waiting = [tip for tip in tips if tip in self.commits]
        while waiting:
            commit = waiting.pop()
            if commit not in found:
                found.add(commit)
                waiting += [parent for parent in self.commits[commit] if parent in self.commits]
        return found

    def beside(self, tips: Iterable[str]) -> list[str]:
        """What the tips do not reach, by the fewest commits."""
        known = self.reached(tips)
        rest = {commit: parents for commit, parents in self.commits.items() if commit not in known}
        return outermost(rest, rest)

    def cuts(self, tips: Collection[str]) -> frozenset[str] | None:
        """Where what these commits reach begins: the host's, and those without parents. None: not known."""
        if not self.whole:
            return None
        cut = {tip for tip in tips if tip not in self.commits}
        for commit in self.reached(tips):
            parents = self.commits[commit]
            cut.update([parent for parent in parents if parent not in self.commits] if parents else [commit])
        return frozenset(cut)


async def read_history(
    repository: Git,
    tips: Collection[str],
    others: Collection[str],
    *,
    without: Collection[str],
    heads: bool,
    need_whole: bool,
) -> History:
    """What tips and others reach and `without` does not; all are there. heads: HEAD and linked ones as well.

    Where that is damaged and need not be whole: what the tips do not reach, which may be kept already.
    """
    words = _HEADS if heads else ()
    if not heads and not tips and not others:
        return History()
    try:
        return History(await listed_commits(repository, _lines([*tips, *others], without), *words))
    except GitFailed:
        if need_whole:
            raise
    beside = await listed_commits(repository, _lines(others, [*tips, *without]), *words)
    return History(beside, whole=False)


def _lines(wanted: Iterable[str], without: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in (*wanted, *(f"^{commit}" for commit in without)))
