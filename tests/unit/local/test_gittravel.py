"""Real repositories on their way into a guest: what arrives is what git says of the source."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.local import gitscratch, gittar
from banger.local.githead import host_moved
from banger.local.gitplan import plan
from banger.local.gitsource import examine
from banger.local.gittravel import aside_name, open_travel
from tests.unit.local.gitrepos import (
    Repo,
    arrive,
    change,
    check_same,
    fingerprint,
    make,
    rich,
    tar_of,
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where scratch folders are; none is left."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("banger.local.gittravel._place", lambda _account: str(folder))
    yield folder
    assert os.listdir(folder) == []


def test_a_clean_repository(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    before = fingerprint(repo.path)
    guest, travel = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert fingerprint(repo.path) == before
    check_same(repo, guest)
    assert guest.git("log", "--format=%H") == repo.git("log", "--format=%H")
    assert guest.git("ls-files", "-s") == repo.git("ls-files", "-s")
    assert guest.git("symbolic-ref", "HEAD") == "refs/heads/main\n"
    assert (guest.path / "bin/run").stat().st_mtime_ns // 10**9 == 1_234_567_890
    assert (guest.path / "bin/run").stat().st_mode & 0o777 == 0o755
    assert os.readlink(guest.path / "dangling") == "/nowhere/at all"
    assert (guest.path / "crlf.txt").read_bytes() == b"one\r\ntwo\r\n"
    assert os.path.lexists(os.fsencode(guest.path) + b"/latin-\xe9")
    assert not (guest.path / "secret.env").exists()
    assert not (guest.path / "noise.log").exists()
    assert travel.plan.untracked_left == ("secret.env",)
    head = repo.head()
    assert travel.workspace == {
        "source_path": str(repo.path),
        "repo_root": str(repo.path),
        "repo_name": "site",
        "guest_path": "/root/repo",
        "mode": "shallow_overlay",
        "readonly": False,
        "head_commit": head,
        "current_branch": "main",
        "branch_name": "main",
        "base_commit": head,
        "brought_commit": head,
        "include_untracked": False,
    }
    assert travel.refs == {"HEAD": head, "heads/main": head, "index": repo.head("HEAD^{tree}")}
    assert guest.head("refs/banger/base") == head


def test_local_changes_travel_as_they_are(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    change(repo)
    repo.git("status")  # its index is fresh now
    before = fingerprint(repo.path)
    guest, travel = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert fingerprint(repo.path) == before
    check_same(repo, guest)
    brought = travel.workspace["brought_commit"]
    assert guest.head("refs/banger/base") == brought == travel.refs["worktree"]
    assert guest.git("rev-parse", f"{brought}^") == guest.git("rev-parse", "HEAD")
    # exactly the files that travelled
    listed = guest.git("ls-tree", "-r", "-z", "--name-only", brought).split("\0")[:-1]
    assert sorted(listed) == sorted(travel.plan.files)
    guest.git("checkout", "-q", brought, "--", ".")
    assert guest.git("diff", brought, "--") == ""
    # -A there is what the way out does: nothing has changed yet
    guest.git("add", "-A")
    assert guest.git("write-tree").strip() == guest.head(f"{brought}^{{tree}}")


def test_the_index_that_was_brought_is_named(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    repo.write("staged.txt", "new\n")
    repo.git("add", "staged.txt")
    _, travel = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert travel.refs["index"] == repo.git("write-tree").strip()


def test_the_same_files_are_the_same_commit(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    repo.write("a.txt", "changed\n")
    source = examine(str(repo.path), account=repo.account())
    with open_travel(source) as one, open_travel(source) as two:
        assert one.refs == two.refs


def test_a_conflict_travels(tmp_path: Path) -> None:
    repo = make(tmp_path)
    repo.git("switch", "-q", "-c", "other")
    repo.write("a.txt", "theirs\n")
    repo.commit()
    repo.git("switch", "-q", "main")
    repo.write("a.txt", "ours\n")
    repo.commit()
    repo.git("merge", "-q", "other", check=False)
    guest, travel = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert guest.git("ls-files", "-u") == repo.git("ls-files", "-u") != ""
    check_same(repo, guest)
    assert "<<<<<<<" in (guest.path / "a.txt").read_text()
    assert "index" not in travel.refs
    # solved there, it is the merge that it would be here
    assert guest.git("status") == repo.git("status")
    guest.write("a.txt", "both\n")
    guest.git("commit", "-q", "-a", "--no-edit")
    assert guest.git("rev-parse", "HEAD^1", "HEAD^2") == repo.git("rev-parse", "main", "other")
    assert guest.git("log", "-1", "--format=%s") == "Merge branch 'other'\n"
    assert guest.git("fsck") == ""


@pytest.mark.parametrize("what", ["cherry-pick", "revert", "rebase"])
def test_what_is_under_way(tmp_path: Path, what: str) -> None:
    repo = make(tmp_path)
    repo.git("switch", "-q", "-c", "other")
    for text in ("theirs\n", "more of theirs\n"):
        repo.write("a.txt", text)
        repo.commit(text.strip())
    repo.git("switch", "-q", "main")
    repo.write("a.txt", "ours\n")
    repo.commit()
    repo.git(what, "other~1" if what == "revert" else "other", check=False)
    source = examine(str(repo.path), account=repo.account())
    guest, travel = arrive(source, tmp_path / "guest")
    check_same(repo, guest)
    if what == "rebase":
        assert travel.plan.notes == (
            "a rebase is under way here; the guest has the files, and not the rebase",
        )
    else:
        assert guest.git("status") == repo.git("status")


@pytest.mark.parametrize("name", ["new\nline", 'quo"te:colon', "back\\slash", "ünï", " "])
def test_folders_with_strange_names(tmp_path: Path, name: str) -> None:
    repo = make(tmp_path, name)
    repo.write("b.txt", "new\n")
    repo.git("add", "b.txt")
    source = examine(str(repo.path), account=repo.account())
    assert (source.root, source.name) == (str(repo.path), name)
    guest, _ = arrive(source, tmp_path / "guest")
    check_same(repo, guest)


def test_objects_that_are_elsewhere(tmp_path: Path) -> None:
    """Borrowed from another repository, which borrows too; the parts not where they usually are."""
    first = rich(tmp_path)
    repo = Repo(tmp_path / 'od:d "name"', tmp_path / "home", init=False)
    repo.git("clone", "-q", "--shared", str(first.path), "middle")
    repo.git("clone", "-q", "--shared", "--separate-git-dir", str(tmp_path / "git dir"), "middle", "last")
    last = Repo(repo.path / "last", repo.home, init=False)
    last.write("a.txt", "there\n")
    source = examine(str(last.path), account=last.account())
    guest, travel = arrive(source, tmp_path / "guest")
    check_same(last, guest)
    assert travel.workspace["repo_root"] == str(last.path)
    assert host_moved(str(last.path), "", last.account()) == last.head()
    assert not (guest.path / ".git/objects/info/alternates").exists()


def test_a_detached_head_and_a_history_longer_than_what_travels(tmp_path: Path) -> None:
    repo = make(tmp_path)
    tree = repo.head("HEAD^{tree}")
    tip = repo.head()
    for number in range(70):
        merged = [f"-p{tip}"]
        if number == 40:  # a second line of history, which is older
            side = tip
            for _ in range(20):
                side = repo.git("commit-tree", "-p", side, "-m", "side", tree).strip()
            merged.append(f"-p{side}")
        tip = repo.git("commit-tree", *merged, "-m", str(number), tree).strip()
    repo.git("checkout", "-q", "--detach", tip)
    guest, travel = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    clone = Repo(tmp_path / "clone", tmp_path / "home", init=False)
    repo.git("branch", "tip")
    clone.git("clone", "-q", "--depth=50", "-b", "tip", f"file://{repo.path}", ".")
    assert guest.git("rev-list", "HEAD") == clone.git("rev-list", "HEAD")
    assert (guest.path / ".git/shallow").read_text() == (clone.path / ".git/shallow").read_text()
    assert guest.git("fsck") == ""
    assert guest.git("symbolic-ref", "-q", "HEAD", check=False) == ""
    assert travel.workspace["branch_name"] == travel.workspace["current_branch"] == ""
    assert travel.refs["HEAD"] == tip


def test_commits_beyond_the_first_look_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gitscratch, "FIRST_LOOK", 3)
    monkeypatch.setattr(gitscratch, "DEPTH", 6)
    repo = make(tmp_path)
    for number in range(9):
        repo.commit(str(number))
    guest, _ = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert guest.git("log", "--format=%s").split() == ["8", "7", "6", "5", "4", "3"]
    assert guest.git("fsck") == ""


def test_a_shallow_clone_of_the_users(tmp_path: Path) -> None:
    origin = make(tmp_path, "origin")
    for number in range(5):
        origin.commit(str(number))
    repo = Repo(tmp_path / "site", tmp_path / "home", init=False)
    repo.git("clone", "-q", "--depth=2", f"file://{origin.path}", ".")
    for mode in ("shallow_overlay", "full_copy"):
        source = examine(str(repo.path), mode=mode, account=repo.account())
        guest, _ = arrive(source, tmp_path / mode)
        assert guest.git("log", "--format=%s").split() == ["4", "3"]
        assert guest.git("fsck") == ""


def test_autocrlf_means_the_same_there(tmp_path: Path) -> None:
    repo = make(tmp_path)
    (repo.home / ".gitconfig").write_text("[core]\n\tautocrlf = true\n")
    repo.write("dos.txt", b"a\r\nb\r\n")
    repo.write(".gitattributes", "*.sh eol=lf\n")
    repo.write("x.sh", b"echo\n")
    repo.commit()
    repo.write("dos.txt", b"a\r\nc\r\n")
    guest, travel = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert (guest.path / "dos.txt").read_bytes() == b"a\r\nc\r\n"
    assert guest.status() == repo.status() == ["", " M dos.txt"]
    assert guest.git("show", f"{travel.workspace['brought_commit']}:dos.txt") == "a\nc\n"


def test_untracked_files_when_asked_for(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    repo.write("new/deep/file", "x", 0o700)
    repo.write("info", "ignored by the user alone")
    (repo.home / "ignored").write_text("info\n")
    (repo.home / ".gitconfig").write_text("[core]\n\texcludesFile = ~/ignored\n")
    Repo(repo.path / "embedded", repo.home).commit()
    source = examine(str(repo.path), include_untracked=True, account=repo.account())
    guest, travel = arrive(source, tmp_path / "guest")
    assert (guest.path / "secret.env").read_text() == "TOKEN=1\n"
    assert (guest.path / "new/deep/file").stat().st_mode & 0o777 == 0o700
    assert not (guest.path / "noise.log").exists()
    assert not (guest.path / "info").exists()
    assert travel.plan.untracked_left == ("embedded/",)
    listed = guest.git("ls-tree", "-r", "--name-only", travel.workspace["brought_commit"]).split()
    assert {"secret.env", "new/deep/file"} <= set(listed)
    assert guest.status(untracked=True) == ["", "?? new/deep/file", "?? secret.env"]
    guest.write("info", "there too")
    assert "?? info" not in guest.status(untracked=True)


def test_a_branch_from_another_commit_is_a_clean_checkout(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    change(repo)
    source = examine(str(repo.path), branch="fix", from_ref="HEAD~1", account=repo.account())
    wanted = repo.head("HEAD~1")
    assert plan(source).modified_left
    guest, travel = arrive(source, tmp_path / "guest")
    assert guest.head() == wanted == travel.workspace["base_commit"] == travel.workspace["brought_commit"]
    assert travel.workspace["head_commit"] == repo.head()
    assert guest.git("symbolic-ref", "--short", "HEAD") == "fix\n"
    assert guest.status(untracked=True) == [""]
    assert (guest.path / "a.txt").read_text() == "one\n"
    assert travel.plan.modified_left == plan(source).modified_left
    assert travel.plan.untracked_left == plan(source).untracked_left
    assert sorted(plan(source).files) == sorted(guest.git("ls-files", "-z").split("\0")[:-1])


def test_a_new_branch_where_the_work_tree_is(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    repo.write("a.txt", "three\n")
    source = examine(str(repo.path), branch="fix/a", from_ref="main", account=repo.account())
    guest, travel = arrive(source, tmp_path / "guest")
    assert guest.git("symbolic-ref", "--short", "HEAD") == "fix/a\n"
    assert guest.status() == ["", " M a.txt"]
    assert travel.refs["heads/fix/a"] == repo.head()
    assert guest.git("branch", "--format=%(refname:short)").split() == ["fix/a"]


def test_metadata_only(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    change(repo)
    source = examine(str(repo.path), mode="metadata_only", account=repo.account())
    guest, travel = arrive(source, tmp_path / "guest")
    assert os.listdir(guest.path) == [".git"]
    assert not (guest.path / ".git/index").exists()
    assert plan(source).files == travel.plan.files == ()
    guest.git("checkout", "-q")
    guest.git("reset", "-q", "--hard")
    assert guest.head("HEAD^{tree}") == repo.head("HEAD^{tree}")


def test_a_full_copy_has_all_branches_tags_and_stashes(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    for number in range(60):
        repo.commit(str(number))
    repo.git("branch", "old", "HEAD~55")
    repo.git("tag", "-a", "-m", "tagged", "v1", "HEAD~58")
    repo.git("update-ref", "refs/remotes/origin/main", "HEAD")
    for text in ("stashed\n", "again\n"):
        repo.write("a.txt", text)
        repo.git("stash", "-q")
    source = examine(str(repo.path), mode="full_copy", account=repo.account())
    guest, travel = arrive(source, tmp_path / "guest")
    check_same(repo, guest)
    for names in ("refs/heads", "refs/tags", "refs/stash"):
        assert guest.git("for-each-ref", names) == repo.git("for-each-ref", names) != ""
    assert guest.git("rev-list", "--all", "--count", "--exclude=refs/banger/*") == repo.git(
        "rev-list", "--all", "--count"
    )
    assert guest.git("stash", "list") == repo.git("stash", "list")
    assert not (guest.path / ".git/shallow").exists()
    assert travel.refs["tags/v1"] == repo.head("v1")
    assert travel.refs["heads/old"] == repo.head("old")
    assert travel.refs["stash"] == repo.head("stash@{0}")
    assert travel.refs["stash-1"] == repo.head("stash@{1}")


def test_readonly(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    guest, _ = arrive(examine(str(repo.path), readonly=True, account=repo.account()), tmp_path / "guest")
    for path in guest.path.rglob("*"):
        if not path.is_symlink():
            writable = bool(path.lstat().st_mode & 0o222)
            assert writable == (".git" in path.parts) or path.suffix in (".pack", ".idx", ".rev"), path
    assert guest.path.stat().st_mode & 0o222 == 0
    assert guest.status() == [""]
    (guest.path / "a.txt").parent.chmod(0o755)


def test_a_linked_work_tree_and_a_folder_in_it(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    repo.git("worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"), "HEAD~1")
    linked = Repo(tmp_path / "linked", repo.home, init=False)
    linked.write("a.txt", "there\n")
    linked.git("add", "a.txt")
    source = examine(str(linked.path / "bin"), account=repo.account())
    assert (source.root, source.path) == (str(linked.path), str(linked.path / "bin"))
    guest, travel = arrive(source, tmp_path / "guest")
    check_same(linked, guest)
    assert travel.workspace["branch_name"] == "side"
    assert travel.plan.untracked_left == ()


def test_a_split_index_and_an_untracked_cache(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    repo.git("update-index", "--untracked-cache", check=False)
    repo.git("update-index", "--split-index")
    repo.write("a.txt", "three\n")
    repo.git("add", "a.txt")
    shared = next((repo.path / ".git").glob("sharedindex.*"))
    before = fingerprint(repo.path)
    guest, _ = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    after = fingerprint(repo.path)
    assert after.pop(str(shared))[3] == before.pop(str(shared))[3]  # git renews its time whenever it reads it
    assert after == before
    check_same(repo, guest)
    assert not list((guest.path / ".git").glob("sharedindex*"))


def test_a_sparse_checkout_stays_one(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    repo.git("sparse-checkout", "set", "bin")
    assert not (repo.path / "ünï").exists()
    guest, travel = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert guest.status() == repo.status() == [""]
    assert guest.git("ls-files", "-t") == repo.git("ls-files", "-t")
    assert travel.workspace["brought_commit"] == repo.head()
    assert not (guest.path / "ünï").exists()


def test_modes_that_only_the_index_knows(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    repo.git("config", "core.fileMode", "false")
    (repo.path / "bin/run").chmod(0o644)
    guest, _ = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert (guest.path / "bin/run").stat().st_mode & 0o777 == 0o755
    assert guest.status() == repo.status() == [""]


def test_an_index_that_is_not_there(tmp_path: Path) -> None:
    repo = make(tmp_path)
    (repo.path / ".git/index").unlink()
    guest, _ = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert guest.status() == repo.status() == ["", "D  a.txt"]


def test_what_is_no_file_any_more(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    shutil.rmtree(repo.path / "a b")
    (repo.path / "a b").symlink_to("bin")  # a folder swapped for a link
    (repo.path / "new\nline").unlink()
    os.mkfifo(repo.path / "new\nline")
    (repo.path / "crlf.txt").unlink()
    repo.write("crlf.txt/in", "a folder now")
    guest, _ = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert not os.path.lexists(guest.path / "a b")
    assert not os.path.lexists(guest.path / "new\nline")
    assert not os.path.lexists(guest.path / "crlf.txt")
    assert guest.git("fsck") == ""


@pytest.mark.parametrize("what", ["other content", "gone", "a link", "a folder on the way"])
def test_a_file_that_changes_under_way(tmp_path: Path, what: str) -> None:
    repo = rich(tmp_path)
    place = repo.path / "bin/run"
    source = examine(str(repo.path), account=repo.account())
    with open_travel(source) as travel:
        if what == "other content":
            repo.write("bin/run", "other")
        elif what == "gone":
            place.unlink()
        elif what == "a link":
            place.unlink()
            place.symlink_to("/etc/passwd")
        else:
            place.parent.rename(repo.path / "elsewhere")
            place.parent.symlink_to("elsewhere")
        with pytest.raises(BangerError, match=r"bin.* changed while") as caught:
            tar_of(travel)
    assert caught.value.code is ErrorCode.BUSY
    assert caught.value.hint


def test_a_file_that_is_written_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = rich(tmp_path)
    real = os.pread
    monkeypatch.setattr(gittar, "SMALL", 4)

    def pread(fd: int, count: int, at: int) -> bytes:
        data = real(fd, count, at)
        if data.startswith(b"one\r"):
            repo.write("crlf.txt", b"ONE\r\nTWO\r\n")
        return data

    with open_travel(examine(str(repo.path), account=repo.account())) as travel:
        monkeypatch.setattr(os, "pread", pread)
        with pytest.raises(BangerError, match="changed while"):
            tar_of(travel)


def test_a_file_that_cannot_be_read_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make(tmp_path)
    source = examine(str(repo.path), account=repo.account())
    real = os.access
    monkeypatch.setattr(os, "access", lambda *a, **kw: "dir_fd" not in kw and real(*a, **kw))
    with pytest.raises(BangerError, match=r"cannot read 'a\.txt'") as caught:
        plan(source)
    assert caught.value.hint


def test_secrets_in_the_remote_stay_home(tmp_path: Path) -> None:
    repo = make(tmp_path)
    repo.git("remote", "add", "origin", "https://ann:s3cret@example.org/site.git")
    repo.git("config", "http.extraHeader", "Authorization: s3cret")
    guest, _ = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert guest.git("remote", "get-url", "origin") == "https://example.org/site.git\n"
    assert "s3cret" not in (guest.path / ".git/config").read_text()


def test_a_large_file_is_never_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    repo = make(tmp_path)
    with (repo.path / "large").open("wb") as file:
        for number in range(200):
            file.write(number.to_bytes(4, "big") * (1 << 18))
    repo.git("add", "large")
    source = examine(str(repo.path), account=repo.account())
    seen = 0

    def take(piece: bytes | memoryview) -> None:
        nonlocal seen
        seen += len(piece)

    tracemalloc.start()
    try:
        with open_travel(source) as travel:
            travel.write_tar(take)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen > 200 << 20
    assert peak < 16 << 20
    assert stat.S_ISREG((repo.path / "large").stat().st_mode)


def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = rich(tmp_path)
    source = examine(str(repo.path), account=repo.account())

    def interrupted(_piece: bytes | memoryview) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_travel(source) as travel:
        travel.write_tar(interrupted)
    monkeypatch.setattr(gitscratch, "_pack", lambda *_: interrupted(b""))
    with pytest.raises(KeyboardInterrupt), open_travel(source):
        pytest.fail("it was opened")


def test_what_a_killed_travel_left_is_removed_by_the_next(tmp_path: Path, temporary: Path) -> None:
    repo = make(tmp_path)
    source = examine(str(repo.path), account=repo.account())
    with open_travel(source):
        held = os.listdir(temporary)
        (temporary / "banger-travel-dead").mkdir()
        (temporary / "banger-travel-dead/file").write_text("x")
        (temporary / "banger-travel-link").symlink_to(repo.path)
        with open_travel(source):
            assert not (temporary / "banger-travel-dead").exists()
            assert set(held) < set(os.listdir(temporary))  # one that is at work stays
    assert (repo.path / "a.txt").exists()
    (temporary / "banger-travel-link").unlink()


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make(tmp_path)
    source = examine(str(repo.path), account=repo.account())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(gitscratch, "write_small", full)
    with pytest.raises(BangerError) as caught, open_travel(source):
        pytest.fail("it was opened")
    assert caught.value.code is ErrorCode.NO_SPACE
    assert "TMPDIR" in str(caught.value.hint)


def test_a_damaged_repository_is_said(tmp_path: Path) -> None:
    repo = rich(tmp_path)
    blob = repo.head("HEAD:bin/run")
    lost = repo.path / ".git/objects" / blob[:2] / blob[2:]
    lost.unlink()
    source = examine(str(repo.path), account=repo.account())
    with pytest.raises(BangerError, match="the repository cannot be read") as caught, open_travel(source):
        pytest.fail("it was opened")
    assert "fsck" in str(caught.value.hint)


def test_what_was_kept_whole_goes_and_all_else_stays_beside() -> None:
    assert aside_name({"refs": []}) == aside_name({"files_only": ""}) == ""
    for kept in (None, {"files_only": "its objects are damaged"}):
        assert re.fullmatch(r"repo\.before-\d{8}T\d{6}Z", aside_name(kept))
