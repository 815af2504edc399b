"""What is kept of a repository: every state that git knows, none of it lost and none of it twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from banger.workspace.errors import WorkNotKept
from banger.workspace.snapshot import Brought
from tests.unit.workspace.guestgit import Guest, Kept, git

pytestmark = pytest.mark.anyio


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


async def test_as_brought_nothing_is_transferred(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    snapshot = await kept.keep(guest.live(), guest.brought)
    assert [part.tips for part in snapshot.parts] == [()]
    staged = await kept.keep(await guest.repository(tmp_path), guest.brought)
    assert [part.tips for part in staged.parts] == [()]
    assert not kept.store.exists
    assert snapshot.head == guest.brought.base_commit
    assert snapshot.branch == "main"
    assert not snapshot.notes


async def test_as_brought_with_local_changes_and_a_partly_staged_index(
    guest: Guest, kept: Kept, tmp_path: Path
) -> None:
    guest.write("a", "staged\n")
    guest.git("add", "a")
    guest.write("a", "staged and more\n")
    guest.write("b", "changed\n")
    guest.prepare()
    for repository in (guest.live(), await guest.repository(tmp_path)):
        await kept.keep(repository, guest.brought)
        assert not kept.store.exists


async def test_commits_and_files(guest: Guest, kept: Kept) -> None:
    first = guest.commit("first", a="one\n")
    second = guest.commit("second", c="two\n")
    guest.write("staged", "staged\n")
    guest.git("add", "staged")
    guest.write("b", "unstaged\n")
    guest.write("new", "untracked\n")
    index = (guest.folder / ".git/index").read_bytes()
    snapshot = await kept.keep(guest.live(), guest.brought)
    assert (guest.folder / ".git/index").read_bytes() == index
    current = await kept.current()
    assert set(current) == {"HEAD", "heads/main", "index", "worktree"}
    assert current["heads/main"] == current["HEAD"] == second
    assert kept.git("rev-parse", "refs/work/heads/main^") == first
    assert kept.files("index") == {"a": "one", "b": "b", "c": "two", "staged": "staged"}
    assert kept.files() == {"a": "one", "b": "unstaged", "c": "two", "staged": "staged", "new": "untracked"}
    assert kept.git("log", "--format=%P", "-1", "refs/work/worktree").split() == [second, current["index"]]
    changes = snapshot.changes
    assert (changes.ahead, changes.staged, changes.unstaged, changes.untracked) == (2, 1, 1, 1)
    assert kept.store.cut() == (guest.brought.base_commit,)
    kept.whole()


async def test_a_large_file_is_not_compressed_where_it_is(guest: Guest, kept: Kept) -> None:
    size = 17 << 20  # git streams what has more than 16 MiB
    guest.git("config", "pack.compression", "9")
    (guest.folder / "large").write_bytes(b"\0" * size)
    await kept.keep(guest.live(), guest.brought)
    packs = [path.stat().st_size for path in (guest.folder / ".git/objects/pack").glob("*.pack")]
    assert len(packs) == 1
    assert packs[0] >= size
    assert kept.git("cat-file", "-s", "refs/work/worktree:large") == str(size)


async def test_again_the_same_is_nothing_new(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    guest.commit("more", a="more\n")
    guest.write("new", "untracked\n")
    await kept.keep(guest.live(), guest.brought)
    refs = await kept.store.refs()
    packs = sorted(os.listdir(kept.folder / "repo.git/objects/pack"))
    for repository in (guest.live(), await guest.repository(tmp_path), guest.live()):
        await kept.keep(repository, guest.brought)
        assert await kept.store.refs() == refs
        assert sorted(os.listdir(kept.folder / "repo.git/objects/pack")) == packs


async def test_amended_and_rebased_history_is_in_old(guest: Guest, kept: Kept) -> None:
    first = guest.commit("work", a="one\n")
    await kept.keep(guest.live(), guest.brought)
    guest.git("commit", "--amend", "-q", "-m", "work, said better")
    amended = guest.git("rev-parse", "HEAD")
    await kept.keep(guest.live(), guest.brought)
    assert (await kept.current())["heads/main"] == amended
    assert first in await kept.old_ids()
    guest.git("reset", "-q", "--hard", "HEAD~2")  # below what was brought
    elsewhere = guest.commit("elsewhere", d="d\n")
    await kept.keep(guest.live(), guest.brought)
    assert (await kept.current())["heads/main"] == elsewhere
    assert {first, amended} <= await kept.old_ids()
    refs = await kept.store.refs()
    await kept.keep(guest.live(), guest.brought)
    assert await kept.store.refs() == refs
    kept.whole()


async def test_reset_to_what_was_brought_loses_nothing(guest: Guest, kept: Kept) -> None:
    work = guest.commit("work", a="one\n")
    guest.write("b", "dirty\n")
    await kept.keep(guest.live(), guest.brought)
    dirty = (await kept.current())["worktree"]
    guest.git("reset", "-q", "--hard", guest.brought.base_commit)
    await kept.keep(guest.live(), guest.brought)
    assert await kept.current() == {}
    # the files' commit has the history below it
    assert await kept.old_ids() == {dirty}
    assert kept.git("merge-base", work, dirty) == work


async def test_deleted_branch(guest: Guest, kept: Kept) -> None:
    guest.git("checkout", "-q", "-b", "topic")
    topic = guest.commit("topic", t="t\n")
    guest.git("checkout", "-q", "main")
    await kept.keep(guest.live(), guest.brought)
    assert (await kept.current()) == {"heads/topic": topic}
    guest.git("branch", "-D", "topic")
    await kept.keep(guest.live(), guest.brought)
    assert await kept.current() == {}
    assert await kept.old() == {("heads/topic", topic)}


async def test_branch_that_becomes_a_folder_and_back(guest: Guest, kept: Kept) -> None:
    guest.git("checkout", "-q", "-b", "a")
    one = guest.commit("one", x="1\n")
    guest.git("checkout", "-q", "main")
    await kept.keep(guest.live(), guest.brought)
    guest.git("checkout", "-q", "a")
    two = guest.commit("two", x="2\n")
    guest.git("branch", "-m", "a", "a/b")
    await kept.keep(guest.live(), guest.brought)
    current = await kept.current()
    assert current["heads/a/b"] == two
    assert "heads/a" not in current
    guest.git("branch", "-m", "a/b", "a")
    await kept.keep(guest.live(), guest.brought)
    assert (await kept.current())["heads/a"] == two
    assert kept.git("merge-base", one, two) == one


async def test_commits_that_only_the_reflog_names(guest: Guest, kept: Kept) -> None:
    guest.git("checkout", "-q", "--detach")
    lonely = guest.commit("on no branch", l="l\n")
    guest.git("checkout", "-q", "main")
    await kept.keep(guest.live(), guest.brought)
    assert await kept.current() == {f"reflog/{lonely[:12]}": lonely}
    guest.git("reflog", "expire", "--expire=now", "--all")
    await kept.keep(guest.live(), guest.brought)
    assert set((await kept.store.refs()).values()) == {lonely}


async def test_detached_head_empty_commit_and_tags(guest: Guest, kept: Kept) -> None:
    guest.git("checkout", "-q", "--detach")
    empty = guest.commit("nothing in it")
    guest.git("tag", "light")
    guest.git("tag", "-a", "heavy", "-m", "annotated")
    guest.git("notes", "add", "-m", "a note")
    blob = guest.git("hash-object", "-w", "a")
    guest.git("update-ref", "refs/tags/blob", blob)
    snapshot = await kept.keep(guest.live(), guest.brought)
    assert snapshot.branch == ""
    current = await kept.current()
    assert current["HEAD"] == current["tags/light"] == empty
    assert current["tags/heavy"] == guest.git("rev-parse", "refs/tags/heavy") != empty
    assert current["tags/blob"] == blob
    assert "notes/commits" in current
    kept.whole()


async def test_unborn_branch(tmp_path: Path, kept: Kept) -> None:
    guest = Guest(tmp_path)
    guest.git("checkout", "-q", "--orphan", "fresh")
    guest.git("rm", "-q", "-rf", ".")
    snapshot = await kept.keep(guest.live(), guest.brought)
    assert snapshot.head == ""
    assert snapshot.branch == "fresh"
    guest.write("first", "of its kind\n")
    await kept.keep(guest.live(), guest.brought)
    assert kept.files() == {"first": "of its kind"}


async def test_several_stashes(guest: Guest, kept: Kept) -> None:
    ids: list[str] = []
    for number in range(3):
        guest.write("a", f"stash {number}\n")
        guest.write(f"untracked-{number}", "too\n")
        guest.git("stash", "push", "-q", "-u", "-m", f"number {number}")
        ids.insert(0, guest.git("rev-parse", "refs/stash"))
    await kept.keep(guest.live(), guest.brought)
    current = await kept.current()
    assert [current["stash"], current["stash-1"], current["stash-2"]] == ids
    guest.git("stash", "drop", "-q", "stash@{1}")
    await kept.keep(guest.live(), guest.brought)
    assert set(ids) <= set((await kept.store.refs()).values())
    assert kept.git("show", f"{ids[0]}^3:untracked-2") == "too"


async def test_files_of_every_kind(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    (guest.folder / "a").chmod(0o755)
    (guest.folder / "binary").write_bytes(bytes(range(256)) * 40)
    (guest.folder / "link").symlink_to("../../etc/passwd")
    (guest.folder / 'new\nline and \u00e4\t"quote').write_text("strange\n")
    os.mkfifo(guest.folder / "fifo")
    Path(os.fsdecode(os.fsencode(guest.folder) + b"/latin-\xe4")).write_text("bytes\n")
    (guest.folder / "b").unlink()
    await kept.keep(guest.live(), guest.brought)
    first = await kept.store.refs()
    listed = kept.git("ls-tree", "-r", "-z", "refs/work/worktree").split("\0")
    modes = {entry.split("\t", 1)[1]: entry.split(" ")[0] for entry in listed if entry}
    assert modes == {
        "a": "100755",
        "binary": "100644",
        "link": "120000",
        'new\nline and \u00e4\t"quote': "100644",
        os.fsdecode(b"latin-\xe4"): "100644",
    }
    (guest.folder / "fifo").unlink()  # a copy does not want it
    await kept.keep(await guest.repository(tmp_path), guest.brought)
    assert await kept.store.refs() == first


async def test_ignored_files_on_request(guest: Guest, kept: Kept) -> None:
    guest.commit("ignore", **{".gitignore": "secret\nbuild/\n"})
    guest.write("secret", "s\n")
    guest.write("build/out", "o\n")
    await kept.keep(guest.live(), guest.brought)
    assert "worktree" not in await kept.current()
    await kept.keep(guest.live(), guest.brought, ignored=True)
    assert {"secret", "build/out"} <= set(kept.files())
    with_them = (await kept.current())["worktree"]
    await kept.keep(guest.live(), guest.brought)
    assert with_them in await kept.old_ids()


async def test_conflict(guest: Guest, kept: Kept) -> None:
    guest.git("checkout", "-q", "-b", "other")
    other = guest.commit("other", a="other\n")
    guest.git("checkout", "-q", "main")
    guest.commit("ours", a="ours\n")
    guest.git("merge", "other", fails=True)
    guest.git("branch", "-D", "-q", "other")
    guest.write("b", "staged beside it\n")
    guest.git("add", "b")
    snapshot = await kept.keep(guest.live(), guest.brought)
    assert snapshot.changes.conflicts == 1
    assert any("conflict" in note for note in snapshot.notes)
    assert "<<<<<<<" in kept.files()["a"]
    assert kept.files("index") == {"a": "ours", "b": "staged beside it"}
    assert other in (await kept.current()).values()  # it is being merged


async def test_entries_that_git_does_not_look_at(guest: Guest, kept: Kept) -> None:
    guest.commit("more", hidden="h\n", absent="x\n", assumed="s\n")
    guest.prepare()
    guest.git("update-index", "--skip-worktree", "hidden", "absent")
    guest.git("update-index", "--assume-unchanged", "assumed")
    (guest.folder / "absent").unlink()
    await kept.keep(guest.live(), guest.brought)
    assert not kept.store.exists, "a file that is not checked out is not deleted"
    guest.write("hidden", "changed\n")
    guest.write("assumed", "changed too\n")
    await kept.keep(guest.live(), guest.brought)
    files = kept.files()
    assert (files["hidden"], files["assumed"], files["absent"]) == ("changed", "changed too", "x")
    assert guest.git("ls-files", "-v", "hidden") == "S hidden"


async def test_sparse_checkout(guest: Guest, kept: Kept) -> None:
    guest.write("in/file", "in\n")
    guest.write("out/file", "out\n")
    guest.commit("folders")
    guest.prepare()
    guest.git("sparse-checkout", "set", "--cone", "--sparse-index", "in")
    assert not (guest.folder / "out").exists()
    await kept.keep(guest.live(), guest.brought)
    assert not kept.store.exists
    guest.write("in/file", "changed\n")
    guest.write("out/new", "outside\n")
    await kept.keep(guest.live(), guest.brought)
    files = kept.files()
    assert (files["in/file"], files["out/file"], files["out/new"]) == ("changed", "out", "outside")


async def test_split_index_and_intent_to_add(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    guest.git("update-index", "--split-index")
    guest.write("intended", "i\n")
    guest.git("add", "-N", "intended")
    await kept.keep(guest.live(), guest.brought)
    assert kept.files() == {"a": "a 2", "b": "b", "intended": "i"}
    refs = await kept.store.refs()
    await kept.keep(await guest.repository(tmp_path), guest.brought)
    assert await kept.store.refs() == refs


async def test_racy_index(guest: Guest, kept: Kept) -> None:
    """A file that changed in the very moment its entry was written, without changing its size."""
    guest.write("a", "1\n")
    guest.git("add", "a")
    before = (guest.folder / "a").stat()
    guest.write("a", "2\n")
    for path in (guest.folder / "a", guest.folder / ".git/index"):
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    await kept.keep(guest.live(), guest.brought)
    assert kept.files()["a"] == "2"


async def test_corrupt_index_keeps_the_files(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    work = guest.commit("work", a="w\n")
    guest.write("a", "dirty\n")
    (guest.folder / ".git/index").write_bytes(b"DIRC nonsense")
    for repository in (guest.live(), await guest.repository(tmp_path)):
        snapshot = await kept.keep(repository, guest.brought)
        assert any("index is damaged" in note for note in snapshot.notes)
        assert (await kept.current())["heads/main"] == work
        assert kept.files() == {"a": "dirty", "b": "b"}


async def test_no_git_folder_any_more(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    import shutil

    guest.write("a", "dirty\n")
    guest.write("sub/folder/file", "f\n")
    shutil.rmtree(guest.folder / ".git")
    snapshot = await kept.keep(await guest.repository(tmp_path), guest.brought)
    assert any(".git is gone" in note for note in snapshot.notes)
    assert kept.files() == {"a": "dirty", "b": "b", "sub/folder/file": "f"}
    kept.whole()


async def test_replaced_and_grafted_history_is_kept_as_it_is(guest: Guest, kept: Kept) -> None:
    first = guest.commit("first", a="1\n")
    second = guest.commit("second", a="2\n")
    guest.git("replace", second, guest.brought.base_commit)
    (guest.folder / ".git/info").mkdir(exist_ok=True)
    (guest.folder / ".git/info/grafts").write_text(f"{second}\n")
    await kept.keep(guest.live(), guest.brought)
    assert kept.git("rev-parse", "refs/work/heads/main^") == first


async def test_shallow_guest(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    for number in range(5):
        guest.commit(f"more {number}", a=f"{number}\n")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth=2", f"file://{guest.folder}", str(clone))
    guest.folder = clone
    guest.prepare()
    git(clone, "checkout", "-q", "--detach", "HEAD~1")
    guest.commit("on the oldest", z="z\n")
    git(clone, "checkout", "-q", "--orphan", "root")
    root = guest.commit("a new root", r="r\n")
    await kept.keep(guest.live(), guest.brought)
    assert (await kept.current())["heads/root"] == root
    assert root not in kept.store.cut()
    kept.whole()


async def test_metadata_only(tmp_path: Path, kept: Kept) -> None:
    guest = Guest(tmp_path)
    for name in ("a", "b", ".git/index"):
        (guest.folder / name).unlink()
    empty = guest.git("hash-object", "-t", "tree", "/dev/null")
    base = guest.brought.base_commit
    brought_commit = guest.git("commit-tree", empty, "-p", base, "-m", "brought")
    brought = Brought(
        base_commit=base, brought_commit=brought_commit, metadata_only=True, refs=guest.brought.refs
    )
    await kept.keep(guest.live(), brought)
    assert not kept.store.exists
    guest.git("checkout", "-q", "HEAD", "--", ".")
    await kept.keep(guest.live(), brought)
    assert not kept.store.exists
    guest.write("a", "changed\n")
    await kept.keep(guest.live(), brought)
    assert kept.files() == {"a": "changed", "b": "b"}


async def test_local_changes_undone_in_the_guest(guest: Guest, kept: Kept) -> None:
    guest.write("a", "local\n")
    guest.prepare()
    guest.git("checkout", "-q", "--", "a")
    await kept.keep(guest.live(), guest.brought)
    assert kept.files()["a"] == "a 2"
    patch = b"".join(
        [c async for c in kept.store.patch(guest.brought.brought_commit, "refs/work/worktree^{tree}")]
    )
    assert b"-local" in patch
    assert b"+a 2" in patch


async def test_history_that_is_damaged_after_it_was_kept(guest: Guest, kept: Kept) -> None:
    """What is kept already stays the work as it is; what is new below the damage is not taken for whole."""
    middle = guest.commit("middle", a="m\n")
    last = guest.commit("last", a="l\n")
    await kept.keep(guest.live(), guest.brought)
    refs = await kept.store.refs()
    assert refs == {"HEAD": last, "heads/main": last}
    (guest.folder / ".git/objects" / middle[:2] / middle[2:]).unlink()
    snapshot = await kept.keep(guest.live(), guest.brought)
    assert await kept.store.refs() == refs
    assert snapshot.changes.ahead == 0, "that cannot be counted"
    guest.write("b", "dirty\n")
    with pytest.raises(WorkNotKept, match="damaged"):
        await kept.keep(guest.live(), guest.brought)
    assert await kept.store.refs() == refs
