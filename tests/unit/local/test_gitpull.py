"""Kept work into a user's repository, with real git on both sides."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.local import gitplaces, gitpull, tempgit
from banger.local.account import Account
from banger.local.kepttips import read_kept
from tests.capabilities import require
from tests.fakes.keptwork import KeptWork, commit, git, repository
from tests.unit.local.pulldesk import PREFIX, Desk, commit_of, objects, oid, pack_of, state, tree_of


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_commits_come_with_their_ids_and_nothing_of_the_users_is_touched(desk: Desk) -> None:
    (desk.user / "one").write_text("edited, not staged")
    (desk.user / "two").write_text("staged")
    git(desk.user, "add", "two")
    (desk.user / "new").write_text("untracked")
    wanted = commit(desk.guest, "four")
    git(desk.guest, "tag", "-a", "v1", "-m", "first")
    git(desk.guest, "branch", "topic/deep")
    (desk.guest / "five").write_text("not committed")
    before = state(desk.user)
    pulled = desk.pull()
    assert state(desk.user) == before
    assert desk.refs() == desk.work.tips()
    assert desk.refs()["heads/main"] == wanted
    assert desk.refs()["tags/v1"] == git(desk.guest, "rev-parse", "v1")
    assert git(desk.user, "show", f"{PREFIX}worktree:five") == "not committed"
    assert [one.name for one in pulled.moved] == ["heads/main", "heads/topic/deep", "tags/v1", "worktree"]
    assert (pulled.folder, pulled.prefix, pulled.former) == (str(desk.user), PREFIX, ())
    assert desk.work.asked == [[desk.work.base]]
    assert git(desk.user, "tag") == ""
    assert git(desk.user, "fsck", "--strict") == ""
    assert not (desk.user / ".git/FETCH_HEAD").exists()


def test_a_second_pull_changes_nothing_and_asks_for_nothing(desk: Desk) -> None:
    commit(desk.guest, "four")
    desk.pull()
    refs, there = desk.refs(), objects(desk.user)
    assert desk.pull().moved == ()
    assert (desk.refs(), objects(desk.user)) == (refs, there)
    assert len(desk.work.asked) == 1


def test_what_came_before_is_not_asked_for_again(desk: Desk) -> None:
    first = commit(desk.guest, "four")
    desk.pull()
    git(desk.guest, "branch", "stays", first)
    second = commit(desk.guest, "five")
    desk.pull()
    assert desk.refs() == {"heads/main": second, "heads/stays": first}
    assert sorted(desk.work.asked[-1]) == sorted({desk.work.base, first})


def test_no_hook_of_the_users_is_run(desk: Desk, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    script = f"#!/bin/sh\necho $0 >> {mark}\nexit 1\n"
    hooks = desk.user / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    own = tmp_path / "own-hooks"
    own.mkdir()
    for name in (
        "reference-transaction",
        "post-merge",
        "post-checkout",
        "pre-auto-gc",
        "fsmonitor",
        "post-rewrite",
    ):
        for folder in (hooks, own):
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
    program = str(hooks / "fsmonitor")
    for key in (
        "core.fsmonitor",
        "core.alternateRefsCommand",
        "uploadpack.packObjectsHook",
        "core.sshCommand",
    ):
        git(desk.user, "config", key, program)
    git(desk.user, "config", "gc.auto", "1")
    git(desk.user, "config", "fetch.recurseSubmodules", "true")
    git(desk.user, "config", "fetch.prune", "true")
    # protected configuration: git asks it, not the repository's, for what a fetch is served with
    (desk.home / ".gitconfig").write_text(
        f"[core]\n\thooksPath = {own}\n[uploadpack]\n\tpackObjectsHook = {program}\n"
        "[transfer]\n\thideRefs = refs/in\n"
    )
    commit(desk.guest, "four")
    desk.pull()
    commit(desk.guest, "five")
    git(desk.guest, "branch", "-m", "main", "other")
    desk.pull()
    assert not mark.exists(), mark.read_text()
    assert desk.refs() == desk.work.tips()


def test_a_rebase_in_the_guest_keeps_the_former_tip(desk: Desk) -> None:
    former = commit(desk.guest, "four")
    desk.pull()
    git(desk.guest, "commit", "-q", "--amend", "-m", "another subject")
    pulled = desk.pull()
    refs = desk.refs()
    assert refs["heads/main"] == git(desk.guest, "rev-parse", "HEAD")
    (old,) = pulled.former
    assert re.fullmatch(r"old/[0-9T]{15}Z/heads/main", old)
    assert refs[old] == former
    assert desk.pull().moved == ()

    git(desk.guest, "reset", "-q", "--hard", former)  # back again: the amended one is what would be lost now
    amended = refs["heads/main"]
    pulled = desk.pull()
    assert desk.refs()["heads/main"] == former
    assert amended in desk.refs().values()
    assert len(set(desk.refs().values())) == 2
    assert former not in {desk.refs()[name] for name in pulled.former}


def test_a_tip_the_store_kept_as_old_is_not_kept_twice(desk: Desk) -> None:
    former = commit(desk.guest, "four")
    desk.pull()
    git(desk.guest, "commit", "-q", "--amend", "-m", "another subject")
    desk.work.old = {"old/20260101T000000Z/heads/main": former}
    assert desk.pull().former == ()
    assert desk.refs() == desk.work.tips()


def test_what_went_in_the_guest_goes_here_and_nothing_is_lost(desk: Desk) -> None:
    """A branch deleted there, one that became a folder, a tag moved, and a work tree that is clean again."""
    git(desk.guest, "checkout", "-q", "-b", "a")
    tip = commit(desk.guest, "on-a")
    git(desk.guest, "tag", "-a", "v1", "-m", "first")
    tag = git(desk.guest, "rev-parse", "v1")
    (desk.guest / "five").write_text("not committed")
    desk.pull()
    files = desk.refs()["worktree"]
    git(desk.guest, "checkout", "-q", "-f", "main")
    (desk.guest / "five").unlink()
    git(desk.guest, "branch", "-D", "a")
    git(desk.guest, "checkout", "-q", "-b", "a/b")
    commit(desk.guest, "on-b")
    git(desk.guest, "tag", "-f", "-a", "v1", "-m", "again")
    pulled = desk.pull()
    refs = desk.refs()
    assert {n: c for n, c in refs.items() if not n.startswith("old/")} == desk.work.tips()
    former = {name.split("/", 2)[2]: refs[name] for name in pulled.former}
    assert former == {"heads/a": tip, "tags/v1": tag, "worktree": files}
    assert desk.pull().moved == ()


def test_a_branch_that_was_merged_goes_without_a_trace(desk: Desk) -> None:
    git(desk.guest, "checkout", "-q", "-b", "topic")
    commit(desk.guest, "four")
    desk.pull()
    git(desk.guest, "checkout", "-q", "main")
    git(desk.guest, "merge", "-q", "--ff-only", "topic")
    git(desk.guest, "branch", "-d", "topic")
    assert desk.pull().former == ()
    assert set(desk.refs()) == {"heads/main"}


def test_a_rebase_on_the_host_before_the_pull(desk: Desk) -> None:
    wanted = commit(desk.guest, "four")
    git(desk.user, "reset", "-q", "--hard", "HEAD~1")
    commit(desk.user, "elsewhere")
    desk.pull()
    assert desk.refs() == {"heads/main": wanted}
    assert git(desk.user, "fsck", "--strict", "--no-dangling") == ""


def test_into_a_clone_elsewhere_a_linked_work_tree_and_a_bare_one(desk: Desk, tmp_path: Path) -> None:
    wanted = commit(desk.guest, "four")
    git(tmp_path, "clone", "-q", "--bare", str(desk.user), "bare.git")
    git(tmp_path, "clone", "-q", str(desk.user), 'awk ward\n"\\dir')
    git(desk.user, "worktree", "add", "-q", str(tmp_path / "linked"))
    for name in ("bare.git", 'awk ward\n"\\dir', "linked"):
        assert desk.pull(tmp_path / name).folder == str(tmp_path / name)
        assert desk.refs(tmp_path / name) == {"heads/main": wanted}
    deep = tmp_path / "linked/below"
    deep.mkdir()
    assert desk.pull(deep).moved == ()


def test_a_sha256_repository(tmp_path: Path) -> None:
    desk = Desk(tmp_path, object_format="sha256")
    wanted = commit(desk.guest, "four")
    desk.pull()
    assert desk.refs() == {"heads/main": wanted}
    assert len(wanted) == 64
    desk.clone(tmp_path / "made")
    assert git(tmp_path / "made", "rev-parse", "HEAD") == wanted


def test_a_shallow_repository_of_the_users_stays_as_shallow_as_it_was(desk: Desk, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{desk.user}", str(shallow))
    wanted = commit(desk.guest, "four")
    before = state(shallow)
    desk.pull(shallow)
    assert desk.refs(shallow) == {"heads/main": wanted}
    assert state(shallow) == before
    assert git(shallow, "fsck", "--strict") == ""


def test_without_the_base_the_hint_is_a_new_clone(desk: Desk, tmp_path: Path) -> None:
    wanted = commit(desk.guest, "four")
    other = repository(tmp_path / "other")
    commit(other, "different")
    git(other, "checkout", "-q", "--orphan", "fresh")
    git(other, "commit", "-q", "-m", "a beginning")
    git(other, "branch", "-D", "main")
    git(other, "reflog", "expire", "--expire=now", "--all")
    git(other, "gc", "-q", "--prune=now")
    before = state(other), objects(other)
    with pytest.raises(BangerError) as caught:
        desk.pull(other)
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert "--into DIR" in str(caught.value.hint)
    assert (state(other), objects(other)) == before

    made = tmp_path / "made"
    assert desk.clone(made).folder == str(made)
    assert git(made, "rev-parse", "HEAD", "--abbrev-ref", "HEAD").split() == [wanted, "main"]
    assert git(made, "status", "--porcelain") == ""
    assert desk.refs(made) == {"HEAD": wanted, "heads/main": wanted}
    assert (made / "four").read_text() == "four"
    assert git(made, "fsck", "--strict") == ""
    assert desk.pull(made).moved[0].name == "HEAD"  # it is on a branch: no longer told of by itself


def test_work_in_a_submodule_goes_into_the_users_submodule(tmp_path: Path) -> None:
    """Where that is checked out; the work of a repository that only the guest has goes beside the rest."""
    desk = Desk(tmp_path)
    library = repository(tmp_path / "library")
    commit(library, "library")
    git(desk.user, "submodule", "--quiet", "add", str(library), "lib/deep")
    git(desk.user, "commit", "-q", "-m", "with a submodule")
    git(tmp_path, "clone", "-q", "--recurse-submodules", str(desk.user), "second")
    desk.guest = tmp_path / "second"
    desk.work = KeptWork(desk.guest, desk.user)
    inner = desk.guest / "lib/deep"
    git(inner, "switch", "-q", "-c", "topic")
    done = commit(inner, "four")
    apart = commit(own := repository(desk.guest / "own"), "apart")
    for place, name in ((inner, "topic"), (own, "main")):  # the store has them all in one
        git(desk.guest, "fetch", "-q", str(place), name)
    desk.work.cut.append(git(library, "rev-parse", "HEAD"))
    desk.work.extra = {"sub/lib/deep/heads/topic": done, "sub/own/heads/main": apart}
    top = commit(desk.guest, "six")
    modules = state(desk.user / "lib/deep")
    pulled = desk.pull()
    files = desk.work.worktree()
    assert desk.refs() == {"heads/main": top, "sub/own/heads/main": apart, "worktree": files}
    assert desk.refs(desk.user / "lib/deep") == {"heads/topic": done}
    assert [(one.folder, [m.name for m in one.moved]) for one in pulled.inner] == [
        (str(desk.user / "lib/deep"), ["heads/topic"])
    ]
    assert state(desk.user / "lib/deep") == modules
    stands = gitplaces.standing(read_kept(desk.work.work()), str(desk.user), account=desk.account)
    assert stands.pulled == stands.present == set(desk.work.tips())
    assert desk.pull().moved == ()
    desk.work.extra["old/20260101T000000Z/sub/lib/deep/heads/topic"] = done
    desk.pull()
    assert desk.refs(desk.user / "lib/deep")["old/20260101T000000Z/heads/topic"] == done


def test_what_builds_on_commits_that_nobody_has_here_is_left_out_and_the_rest_comes(
    desk: Desk, tmp_path: Path
) -> None:
    """As when the guest fetched one shallow commit of somebody else's, and went on from there."""
    wanted = commit(desk.guest, "four")
    strange = repository(tmp_path / "strange")
    commit(strange, "strange")
    git(desk.guest, "fetch", "-q", "--depth=1", f"file://{strange}", "main")
    edge = git(desk.guest, "rev-parse", "FETCH_HEAD")
    git(desk.guest, "checkout", "-q", "-b", "theirs", "FETCH_HEAD")
    theirs = commit(desk.guest, "seven")
    git(desk.guest, "checkout", "-q", "main")
    desk.work.cut.append(edge)
    pulled = desk.pull()
    assert pulled.left_out == ("heads/theirs",)
    assert desk.refs() == {"heads/main": wanted}
    assert not (desk.user / ".git/shallow").exists()
    assert git(desk.user, "fsck", "--strict") == ""
    git(desk.user, "update-ref", f"{PREFIX}heads/theirs", wanted)
    desk.pull()
    assert desk.refs()["heads/theirs"] == wanted  # of before: left alone
    desk.clone(tmp_path / "made")
    assert desk.refs(tmp_path / "made")["heads/theirs"] == theirs
    assert git(tmp_path / "made", "fsck", "--strict") == ""


def test_what_old_histories_have_is_taken(desk: Desk) -> None:
    blob = b"x"
    tree = tree_of(b"x", oid("blob", blob), b"0100644")
    made = commit_of(oid("tree", tree), desk.work.base).replace(b"<ann@example.org>", b"<>")
    told = {**desk.work.work(), "refs": [{"name": "heads/old", "commit": oid("commit", made)}]}
    pack = pack_of((3, blob), (2, tree), (1, made))
    gitpull.pull(read_kept(told), lambda _have: iter([pack]), str(desk.user), account=desk.account)
    assert desk.refs() == {"heads/old": oid("commit", made)}


def test_where_a_pull_goes(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = read_kept(desk.work.work())
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(desk.user), str(other))
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    git(stranger, "init", "-q")

    def found(asked: str, recorded: str) -> str:
        return gitplaces.find_repository(kept, asked, recorded, account=desk.account)

    monkeypatch.chdir(other)
    assert found(str(desk.user), str(other)) == str(desk.user)
    assert found("", str(desk.user)) == str(desk.user)
    assert found("", str(tmp_path / "gone")) == str(other)
    assert found("", "") == str(other)
    for here in (stranger, tmp_path):
        monkeypatch.chdir(here)
        with pytest.raises(BangerError, match="no repository to pull the work of web into"):
            found("", str(tmp_path / "gone"))
    with pytest.raises(BangerError):
        found(str(tmp_path), str(desk.user))


def test_a_daemon_that_goes_away_in_the_middle_changes_nothing(desk: Desk) -> None:
    commit(desk.guest, "four")
    before = state(desk.user), objects(desk.user)

    def broken(have: Sequence[str]) -> Iterator[bytes]:
        yield next(desk.work.pack(have))[:50]
        raise BangerError(ErrorCode.DAEMON_UNREACHABLE, "the daemon went away")

    with pytest.raises(BangerError, match="the daemon went away"):
        gitpull.pull(read_kept(desk.work.work()), broken, str(desk.user), account=desk.account)
    assert (state(desk.user), objects(desk.user)) == before
    desk.pull()
    assert desk.refs() == desk.work.tips()


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from banger.local import gitpull
from banger.local.account import this_account
from banger.local.kepttips import read_kept
from tests.fakes.keptwork import KeptWork
def die(*_args, **_kw):
    os.kill(os.getpid(), signal.SIGKILL)
before = getattr(gitpull, {where!r})
setattr(gitpull, {where!r}, die)
work = KeptWork(Path({guest!r}), Path({user!r}), base={base!r})
account = this_account({{"HOME": {home!r}, "PATH": os.environ["PATH"]}}, euid=1000)
gitpull.pull(read_kept(work.work()), work.pack, {user!r}, account=account)
"""


@pytest.mark.parametrize("where", ["take_tips", "fetch", "_apply"])
def test_killed_in_the_middle_the_next_pull_succeeds(desk: Desk, where: str) -> None:
    wanted = commit(desk.guest, "four")
    script = KILLED.format(
        path=sys.path,
        where=where,
        guest=str(desk.guest),
        user=str(desk.user),
        base=desk.work.base,
        home=str(desk.home),
    )
    before = state(desk.user)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert state(desk.user) == before
    parent = Path(tempgit.parent_folder(desk.account))
    # _apply comes when the temporary repository is gone
    assert len(os.listdir(parent)) == (0 if where == "_apply" else 1)
    with tempgit.temporary(desk.account) as held:
        assert os.listdir(parent) == [Path(held).name]  # the other one was swept,
        desk.pull()  # and one that is held is left alone
        assert os.listdir(parent) == [Path(held).name]
    assert desk.refs() == {"heads/main": wanted}
    assert os.listdir(parent) == []


@require("root")
def test_under_sudo_all_of_it_is_the_callers(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if os.stat(folder).st_uid == 0 and folder not in (Path("/"), Path("/tmp")):
            folder.chmod(folder.stat().st_mode | 0o055)
    desk = Desk(tmp_path)
    commit(desk.guest, "four")
    for path in (desk.home, desk.user, *desk.user.rglob("*")):
        os.lchown(path, 1, 1)
    own = {"HOME": str(desk.home), "PATH": os.environ["PATH"]}
    desk.account = Account(home=str(desk.home), env=own, uid=1, gid=1)
    desk.pull()
    said = git(desk.user, "-c", "safe.directory=*", "rev-parse", f"{PREFIX}heads/main")
    assert said == desk.work.tips()["heads/main"]
    owners = {p.lstat().st_uid for folder in (desk.home, desk.user) for p in folder.rglob("*")}
    assert owners == {1}
    made = desk.home / "made"
    desk.clone(made)
    assert {p.lstat().st_uid for p in made.rglob("*")} == {1}
