"""Kept work into a user's repository: real git on both sides, and packs as hostile guests have them."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.local import gitclone, gitplaces, gitpull, tempgit
from banger.local.account import Account, this_account
from banger.local.kepttips import WorkRefused, read_kept, ref_fault
from tests.capabilities import require
from tests.fakes.keptwork import KeptWork, commit, git, git_raw, repository

PREFIX = "refs/banger/web/"


class Desk:
    """A user with a repository, a guest with a clone of it, and pulls from one to the other."""

    def __init__(self, folder: Path, *, object_format: str = "sha1") -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.user = repository(folder / "user", object_format=object_format)
        self.guest = folder / "guest"
        git(folder, "clone", "-q", str(self.user), str(self.guest))
        git(self.guest, "remote", "remove", "origin")
        self.work = KeptWork(self.guest, self.user)
        self.account: Account = this_account({"HOME": str(self.home), "PATH": os.environ["PATH"]}, euid=1000)

    def pull(self, folder: Path | None = None) -> gitpull.Pulled:
        kept = read_kept(self.work.work())
        return gitpull.pull(kept, self.work.pack, str(folder or self.user), account=self.account)

    def clone(self, folder: Path) -> gitpull.Pulled:
        return gitclone.clone(read_kept(self.work.work()), self.work.pack, str(folder), account=self.account)

    def refs(self, folder: Path | None = None) -> dict[str, str]:
        listed = git(folder or self.user, "for-each-ref", "--format=%(refname) %(objectname)", PREFIX)
        return {n.removeprefix(PREFIX): oid for n, oid in map(str.split, listed.splitlines())}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def state(folder: Path) -> dict[str, str]:
    """Everything of a repository but objects and banger's refs: content, mode and time of each file."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith((".git/objects", ".git/refs/banger")) or name == ".git/refs":
            continue
        info = path.lstat()
        if stat.S_ISREG(info.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content = os.readlink(path) if path.is_symlink() else ""
        times = "" if name == ".git" else str(info.st_mtime_ns)  # a lock that comes and goes is not a change
        found[name] = f"{info.st_mode:o} {times} {content}"
    return found


def objects(folder: Path) -> list[str]:
    return sorted(str(p) for p in (folder / ".git/objects").rglob("*") if p.is_file())


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


def test_a_clone_begins_anew_where_one_was_cut_short(desk: Desk, tmp_path: Path) -> None:
    git(desk.guest, "checkout", "-q", "--detach")
    wanted = commit(desk.guest, "four")
    made = tmp_path / "made"
    git(tmp_path, "init", "-q", str(made))
    (made / "half").write_text("a file")
    with pytest.raises(BangerError, match="exists and is not empty"):
        desk.clone(made)
    (made / ".git" / gitclone.UNFINISHED).touch()
    desk.clone(made)
    assert git(made, "rev-parse", "HEAD") == wanted
    assert git(made, "branch", "--show-current") == ""
    assert git(made, "status", "--porcelain") == ""
    assert not (made / ".git" / gitclone.UNFINISHED).exists()


def test_a_clone_that_fails_leaves_nothing(desk: Desk, tmp_path: Path) -> None:
    commit(desk.guest, "four")
    kept = read_kept(desk.work.work())
    with pytest.raises(WorkRefused):
        gitclone.clone(kept, lambda _have: iter([b"PACK"]), str(tmp_path / "made"), account=desk.account)
    assert not (tmp_path / "made").exists()


def test_a_clone_runs_no_filter_of_the_users(desk: Desk, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (desk.home / ".gitconfig").write_text(
        f'[filter "my.own"]\n\tsmudge = "touch {mark}; cat"\n\trequired = true\n'
        f'[filter "lfs"]\n\tprocess = touch {mark}\n'
    )
    (desk.guest / ".gitattributes").write_text("four filter=my.own\nfive filter=lfs\n")
    git(desk.guest, "add", "-A")
    commit(desk.guest, "four")
    commit(desk.guest, "five")
    desk.clone(tmp_path / "made")
    assert (tmp_path / "made/five").read_text() == "five"
    assert not mark.exists()


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


# what a hostile guest could send


def pack_of(*entries: tuple[int, bytes], size: int | None = None) -> bytes:
    """A pack of whole objects: type (1 commit, 2 tree, 3 blob), content. size: what the headers claim."""
    body = b"PACK" + struct.pack(">II", 2, len(entries))
    for kind, data in entries:
        left = len(data) if size is None else size
        byte = kind << 4 | left & 15
        left >>= 4
        while left:
            body += bytes([byte | 128])
            byte, left = left & 127, left >> 7
        body += bytes([byte]) + zlib.compress(data)
    return body + hashlib.sha1(body).digest()


def oid(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def tree_of(name: bytes, blob: str, mode: bytes = b"100644") -> bytes:
    return mode + b" " + name + b"\0" + bytes.fromhex(blob)


def commit_of(tree: str, parent: str = "") -> bytes:
    who = "Ann <ann@example.org> 1700000000 +0000"
    above = f"parent {parent}\n" if parent else ""
    return f"tree {tree}\n{above}author {who}\ncommitter {who}\n\nhostile\n".encode()


def planted(entry: bytes, parent: str, mode: bytes = b"100644") -> tuple[str, bytes]:
    """(the tip, a pack) of a commit whose tree has such an entry."""
    blob = b"[core]\n\tfsmonitor = touch /tmp/x\n"
    tree = tree_of(entry, oid("blob", blob), mode)
    made = commit_of(oid("tree", tree), parent)
    return oid("commit", made), pack_of((3, blob), (2, tree), (1, made))


def hostile(desk: Desk, tips: dict[str, str], pack: bytes, *, most_bytes: int = gitpull.MOST_BYTES) -> str:
    """Pull it: it must be refused, with the repository and the user's cache as they were. What was said."""
    commit(desk.guest, "good")
    desk.pull()
    before = state(desk.user), objects(desk.user), desk.refs()
    told = {**desk.work.work(), "refs": [{"name": n, "commit": c} for n, c in tips.items()]}

    def pieces(_have: Sequence[str]) -> Iterator[bytes]:
        for at in range(0, len(pack), 1000):
            yield pack[at : at + 1000]

    with pytest.raises(WorkRefused) as caught:
        gitpull.pull(read_kept(told), pieces, str(desk.user), account=desk.account, most_bytes=most_bytes)
    assert (state(desk.user), objects(desk.user), desk.refs()) == before
    assert os.listdir(tempgit.parent_folder(desk.account)) == []
    assert caught.value.brief.isprintable()
    return caught.value.brief


@pytest.mark.parametrize("entry", [b".git", b".GIT", b"git~1", b"..", b"a/b", ".g\u200cit".encode()])
def test_a_tree_with_such_an_entry_is_refused(desk: Desk, entry: bytes) -> None:
    tip, pack = planted(entry, desk.work.base)
    hostile(desk, {"heads/main": tip}, pack)


def test_gitmodules_as_a_link_is_refused(desk: Desk) -> None:
    tip, pack = planted(b".gitmodules", desk.work.base, b"120000")
    hostile(desk, {"heads/main": tip}, pack)


@pytest.mark.parametrize(
    "name",
    [
        "heads/../../x",
        "../heads/main",
        "/heads/main",
        "heads//x",
        "heads/x\ny",
        "heads/x\0y",
        "heads/x y",
        "heads/.x",
        "heads/x.lock",
        "heads/x.lock/y",
        "heads/x.",
        "heads/@{x",
        "heads/x~1",
        "@",
        "",
        "heads/" + "x" * 241,
        "x/" * 600 + "x",
        "heads/\x1b[31m",
        "-",  # a name as git allows it; only the object is missing
    ],
)
def test_such_a_ref_is_refused(desk: Desk, name: str) -> None:
    hostile(desk, {name: "12" * 20}, pack_of((3, b"x")))


@pytest.mark.parametrize("commit", ["", "1234", "g" * 40, "HEAD", "12" * 20 + "\n", "--all", "A" * 40])
def test_what_is_no_id_is_refused(desk: Desk, commit: str) -> None:
    hostile(desk, {"heads/main": commit}, pack_of((3, b"x")))


def test_names_in_each_others_way_are_refused(desk: Desk) -> None:
    hostile(desk, {"heads/a": "12" * 20, "heads/a/b": "12" * 20}, b"")


def test_too_many_refs_are_refused(desk: Desk) -> None:
    hostile(desk, {f"heads/x{number}": "12" * 20 for number in range(20_001)}, b"")


def test_missing_objects_are_refused(desk: Desk) -> None:
    made = commit_of("34" * 20, desk.work.base)
    hostile(desk, {"heads/main": oid("commit", made)}, pack_of((1, made)))


def test_a_missing_parent_is_refused(desk: Desk) -> None:
    blob = b"x"
    tree = tree_of(b"x", oid("blob", blob))
    made = commit_of(oid("tree", tree), "34" * 20)
    hostile(desk, {"heads/main": oid("commit", made)}, pack_of((3, blob), (2, tree), (1, made)))


def test_an_object_that_nothing_carries_is_refused(desk: Desk) -> None:
    hostile(desk, {"heads/main": "12" * 20}, pack_of((3, b"x")))


def test_a_pack_larger_than_it_may_be_is_refused(desk: Desk) -> None:
    tip, pack = planted(b"x", desk.work.base)
    pack = pack_of((3, os.urandom(2 << 20)))
    assert "larger than 1 MiB" in hostile(desk, {"heads/main": tip}, pack, most_bytes=1 << 20)


@pytest.mark.parametrize("kind", [1, 2])
def test_an_object_that_claims_all_memory_is_refused(desk: Desk, kind: int) -> None:
    hostile(desk, {"heads/main": "12" * 20}, pack_of((kind, b"x" * 1000), size=3 << 30))


@pytest.mark.parametrize("broken", ["short", "sum", "nothing"])
def test_a_pack_that_is_not_whole_is_refused(desk: Desk, broken: str) -> None:
    tip, pack = planted(b"x", desk.work.base)
    damaged = {"short": pack[:-30], "sum": pack[:-1] + bytes([pack[-1] ^ 1]), "nothing": b""}
    hostile(desk, {"heads/main": tip}, damaged[broken])


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
from tests.unit.local.test_gitpull import Desk
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


def test_ref_fault_agrees_with_git(tmp_path: Path) -> None:
    names = [
        "heads/x",
        "a/b/c",
        "old/20260101T000000Z/heads/é",
        "sub/a%20b/heads/x",
        "@x",
        "x@",
        "a@b",
        "HEAD",
        "-x",
    ]
    names += [
        "a..b",
        "a/./b",
        ".a",
        "a.",
        "a.lock",
        "a.lock/b",
        "a b",
        "a:b",
        "a\\b",
        "a[b",
        "a?b",
        "a*b",
        "a^b",
    ]
    names += [
        "a~b",
        "a\tb",
        "a\x7fb",
        "a@{b",
        "a//b",
        "/a",
        "a/",
        "{a}",
        'a"b',
        "a'b",
        "$(a)",
        "a;b",
        "%41",
        "@",
    ]
    for name in names:
        said = git_raw(tmp_path, "check-ref-format", f"refs/x/{name}").returncode
        if name != "@":  # `refs/x/@` is one to git; nothing of ours has that name
            assert (said == 0) == (ref_fault(name) == ""), name
