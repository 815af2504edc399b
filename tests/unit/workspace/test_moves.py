"""Refs of the store move in steps: whatever a crash leaves between them, no tip is lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from banger.workspace.store import WorkStore
from tests.unit.workspace.guestgit import ENV, Guest, Kept, git

pytestmark = pytest.mark.anyio


class Cut(Exception):
    """The daemon ends here."""


@pytest.mark.parametrize("after", range(4))
async def test_cut_between_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    guest, kept = Guest(tmp_path), Kept(tmp_path)
    guest.git("checkout", "-q", "-b", "a")
    one = guest.commit("one", x="1\n")
    guest.git("checkout", "-q", "-b", "other")
    two = guest.commit("two", y="2\n")
    guest.write("dirty", "d\n")
    await kept.keep(guest.live(), guest.brought)
    before = set((await kept.store.refs()).values())
    (guest.folder / "dirty").unlink()
    guest.git("checkout", "-q", "a")
    guest.git("branch", "-m", "a", "a/b")
    guest.git("branch", "-D", "other")
    three = guest.commit("three", x="3\n")
    real, count = WorkStore._update, 0

    async def update(store: WorkStore, lines: list[str]) -> None:
        nonlocal count
        if lines:
            if count == after:
                raise Cut
            count += 1
        await real(store, lines)

    with monkeypatch.context() as patched:
        patched.setattr(WorkStore, "_update", update)
        try:
            await kept.keep(guest.live(), guest.brought)
        except Cut:
            pass
    reachable = set(kept.git("rev-list", "--all").split())
    assert before <= reachable
    await kept.keep(guest.live(), guest.brought)
    current = await kept.current()
    assert current["heads/a/b"] == three
    assert {one, two, three} | before <= set(kept.git("rev-list", "--all").split())
    refs = await kept.store.refs()
    await kept.keep(guest.live(), guest.brought)
    assert await kept.store.refs() == refs
    kept.whole()


async def test_own_commits_that_the_guest_has_lost_are_the_same_again(tmp_path: Path) -> None:
    guest, kept = Guest(tmp_path), Kept(tmp_path)
    guest.write("staged", "s\n")
    guest.git("add", "staged")
    guest.write("a", "dirty\n")
    await kept.keep(guest.live(), guest.brought)
    first = await kept.store.refs()
    guest.git("gc", "-q", "--prune=now")
    guest.write("a", "dirtier\n")
    await kept.keep(guest.live(), guest.brought)
    current = await kept.current()
    assert current["index"] == first["index"]
    guest.write("a", "dirty\n")
    guest.git("gc", "-q", "--prune=now")
    await kept.keep(guest.live(), guest.brought)
    assert (await kept.current())["worktree"] == first["worktree"]


async def test_many_packs_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banger.workspace.store.MAX_PACKS", 3)
    guest, kept = Guest(tmp_path), Kept(tmp_path)
    for number in range(6):
        guest.commit(f"work {number}", a=f"{number}\n")
        await kept.keep(guest.live(), guest.brought)
    packs = [name for name in os.listdir(kept.folder / "repo.git/objects/pack") if name.endswith(".pack")]
    assert len(packs) <= 4
    kept.whole()
    assert len(kept.git("rev-list", "refs/work/heads/main").split()) == 7


NAMES = st.sampled_from(["a", "b", "f/g", "new", "x"])
BRANCHES = st.sampled_from(["main", "p", "p/q", "r"])
CONTENTS = st.sampled_from(["1\n", "2\n", "22\n", ""])


class Repositories(RuleBasedStateMachine):
    """Whatever is done in the guest: what existed at a keep is reachable in the store ever after."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.place = tempfile.TemporaryDirectory()
        path = Path(self.place.name)
        self.guest, self.kept = Guest(path), Kept(path)
        self.on_host = set(self.guest.git("rev-list", "--all").split())
        self.trees = set(self.guest.git("log", "--all", "--format=%T").split())
        self.commits: set[str] = set()
        self.seen: set[str] = set()
        self.staged = 0

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()
            self.place.cleanup()

    def try_git(self, *argv: str) -> None:
        """What git refuses just then is not done."""
        subprocess.run(
            ["git", "-c", "gc.auto=0", *argv],
            cwd=self.guest.folder,
            env={**ENV, "GIT_EDITOR": "true"},
            capture_output=True,
            check=False,
            timeout=60,
        )

    @rule(name=NAMES, content=CONTENTS)
    def write(self, name: str, content: str) -> None:
        path = self.guest.folder / name
        if path.parent.is_dir() or not path.parent.exists():
            self.guest.write(name, content)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        (self.guest.folder / name).unlink(missing_ok=True)

    @rule(name=NAMES, mode=st.sampled_from([0o644, 0o755]))
    def chmod(self, name: str, mode: int) -> None:
        if (self.guest.folder / name).exists():
            (self.guest.folder / name).chmod(mode)

    @rule(name=NAMES)
    def add(self, name: str) -> None:
        self.try_git("add", "-A", "--", name)

    @rule(every=st.booleans(), amend=st.booleans())
    def commit(self, every: bool, amend: bool) -> None:
        words = (["-a"] if every else []) + (["--amend"] if amend else [])
        self.try_git("commit", "-q", "--allow-empty", "-m", "c", *words)

    @rule(branch=BRANCHES)
    def new_branch(self, branch: str) -> None:
        self.try_git("checkout", "-q", "-b", branch)

    @rule(branch=BRANCHES, force=st.booleans())
    def switch(self, branch: str, force: bool) -> None:
        self.try_git("checkout", "-q", *(["-f"] if force else []), branch)

    @rule(branch=BRANCHES)
    def delete(self, branch: str) -> None:
        self.try_git("branch", "-D", branch)

    @rule(old=BRANCHES, new=BRANCHES)
    def rename(self, old: str, new: str) -> None:
        self.try_git("branch", "-m", old, new)

    @rule(kind=st.sampled_from(["--soft", "--mixed", "--hard"]), back=st.integers(0, 3))
    def reset(self, kind: str, back: int) -> None:
        self.try_git("reset", "-q", kind, f"HEAD~{back}")

    @rule(what=st.sampled_from(["push", "pop", "drop"]))
    def stash(self, what: str) -> None:
        self.try_git("stash", what, *(["-u"] if what == "push" else []))

    @rule(branch=BRANCHES, how=st.sampled_from(["merge", "rebase", "cherry-pick"]))
    def combine(self, branch: str, how: str) -> None:
        self.try_git(how, branch)

    @rule(
        how=st.sampled_from(["merge", "rebase", "cherry-pick"]),
        what=st.sampled_from(["--abort", "--continue"]),
    )
    def end(self, how: str, what: str) -> None:
        self.try_git(how, what)

    @rule()
    def detach(self) -> None:
        self.try_git("checkout", "-q", "--detach")

    @rule(name=st.sampled_from(["o", "p"]))
    def orphan(self, name: str) -> None:
        self.try_git("checkout", "-q", "--orphan", name)

    @rule(name=st.sampled_from(["t", "u"]))
    def tag(self, name: str) -> None:
        self.try_git("tag", "-f", "-a", "-m", "t", name)

    @rule()
    def collect(self) -> None:
        self.try_git("reflog", "expire", "--expire=now", "--all")
        self.try_git("gc", "-q", "--prune=now")

    @rule(name=NAMES, option=st.sampled_from(["--skip-worktree", "--assume-unchanged", "--no-skip-worktree"]))
    def flag(self, name: str, option: str) -> None:
        self.try_git("update-index", option, name)

    @rule(copied=st.booleans())
    def keep(self, copied: bool) -> None:
        listed = subprocess.run(
            ["git", "rev-list", "--all", "--reflog", "HEAD"],
            cwd=self.guest.folder, env=ENV, capture_output=True, check=False,
        )  # fmt: skip
        if listed.returncode:  # HEAD is unborn
            listed = subprocess.run(
                ["git", "rev-list", "--all", "--reflog"],
                cwd=self.guest.folder, env=ENV, capture_output=True, check=True,
            )  # fmt: skip
        banger = self.guest.git("rev-parse", "refs/banger/base")
        self.commits |= set(listed.stdout.decode().split()) - self.on_host - {banger}
        self.seen.add(self.tree())
        index = (self.guest.folder / ".git/index").read_bytes()
        refs = self.guest.git("for-each-ref")
        self.loop.run_until_complete(self._keep(copied))
        assert (self.guest.folder / ".git/index").read_bytes() == index
        assert self.guest.git("for-each-ref") == refs
        self.check()

    async def _keep(self, copied: bool) -> None:
        async def repository() -> object:
            return await self.guest.repository(Path(self.place.name)) if copied else self.guest.live()

        await self.kept.keep(await repository(), self.guest.brought)  # type: ignore[arg-type]
        again = await self.kept.store.refs()
        await self.kept.keep(self.guest.live(), self.guest.brought)
        assert await self.kept.store.refs() == again, "the same is nothing new"

    def tree(self) -> str:
        """Of the files, by git without any index that was there before."""
        words = ["git", f"--git-dir={self.place.name}/tree.git", f"--work-tree={self.guest.folder}"]
        git(Path(self.place.name), "init", "-q", "--bare", "tree.git")
        (Path(self.place.name) / "tree.git/index").unlink(missing_ok=True)
        subprocess.run([*words, "add", "-A", "."], cwd=self.guest.folder, env=ENV, check=True)
        made = subprocess.run([*words, "write-tree"], env=ENV, check=True, capture_output=True)
        return made.stdout.decode().strip()

    def check(self) -> None:
        """Nothing of any keep is lost, and the store is whole."""
        if not self.kept.store.exists:
            assert self.commits <= self.on_host
            assert self.seen <= self.trees
            return
        self.kept.whole()
        kept = set(self.kept.git("rev-list", "--all").split())
        assert self.commits <= kept | self.on_host
        trees = set(self.kept.git("log", "--all", "--format=%T").split())
        assert self.seen <= trees | self.trees


EXAMPLES = int(os.environ.get("BANGER_WORK_EXAMPLES", "4"))


def test_any_history() -> None:
    run_state_machine_as_test(
        Repositories,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
        ),
    )
