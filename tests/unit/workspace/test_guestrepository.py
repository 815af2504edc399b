"""git through the real agent: the same work as on the host, and no belief in what comes back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from banger.errors import BangerError
from banger.workspace.errors import GitFailed, GitMissing, NoRepository, WorkNotKept
from banger.workspace.guestrepository import GuestRepository
from banger.workspace.repository import existing
from banger.workspace.snapshot import take
from tests.unit.workspace.guestgit import Guest, Kept, commit, git

pytestmark = pytest.mark.anyio


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def repository(vm_dir: Path, guest: Guest) -> GuestRepository:
    roots = (str(vm_dir / "missing"), str(vm_dir))
    return GuestRepository(str(vm_dir), str(guest.folder), scratch_roots=roots)


async def test_as_on_the_host(vm_dir: Path, guest: Guest, kept: Kept, tmp_path: Path) -> None:
    guest.commit("work", a="w\n")
    guest.write("staged", "s\n")
    guest.git("add", "staged")
    guest.write("new\nname", "untracked\n")
    Path(os.fsdecode(os.fsencode(guest.folder) + b"/latin-\xe4")).write_text("bytes\n")
    (guest.folder / "large").write_bytes(os.urandom(3 << 20))
    await kept.keep(repository(vm_dir, guest), guest.brought)
    refs = await kept.store.refs()
    assert set(await kept.current()) == {"HEAD", "heads/main", "index", "worktree"}
    kept.whole()
    await kept.keep(await guest.repository(tmp_path), guest.brought)
    assert await kept.store.refs() == refs
    assert not list((vm_dir / "banger-keep").iterdir()), "the scratch folder is empty"
    assert (vm_dir / "banger-keep").stat().st_mode & 0o777 == 0o700


async def test_as_brought_nothing_is_transferred(vm_dir: Path, guest: Guest, kept: Kept) -> None:
    await kept.keep(repository(vm_dir, guest), guest.brought)
    assert not kept.store.exists


async def test_repositories_inside(vm_dir: Path, guest: Guest, kept: Kept, tmp_path: Path) -> None:
    inner = guest.folder / "vendor/it"
    inner.mkdir(parents=True)
    git(inner, "init", "-q", "-b", "trunk")
    first = commit(inner, "first", f="f\n")
    (inner / "loose").write_text("loose\n")
    bare = guest.folder / "no commits"
    bare.mkdir()
    git(bare, "init", "-q", "-b", "trunk")
    (bare / "draft").write_text("draft\n")
    await kept.keep(repository(vm_dir, guest), guest.brought)
    assert (await kept.current())["sub/vendor/it/HEAD"] == first
    assert kept.files("sub/vendor/it/worktree") == {"f": "f", "loose": "loose"}
    assert kept.files("sub/no%20commits/worktree") == {"draft": "draft"}
    refs = await kept.store.refs()
    await kept.keep(await guest.repository(tmp_path), guest.brought)
    assert await kept.store.refs() == refs


async def test_filters_of_the_guest_are_not_asked(
    vm_dir: Path, guest: Guest, kept: Kept, tmp_path: Path
) -> None:
    """With a clean filter the commit would have a pointer, and the content would be nowhere."""
    guest.git("config", "filter.large.clean", f"touch {tmp_path}/run; echo pointer")
    guest.git("config", "filter.large.required", "true")
    guest.write(".gitattributes", "*.big filter=large\n")
    guest.write("x.big", "the content\n")
    await kept.keep(repository(vm_dir, guest), guest.brought)
    assert kept.files()["x.big"] == "the content"
    assert not (tmp_path / "run").exists()


async def test_hooks_of_the_guest_are_not_run(vm_dir: Path, guest: Guest, kept: Kept, tmp_path: Path) -> None:
    for name in ("post-index-change", "reference-transaction", "pre-commit", "fsmonitor"):
        hook = guest.folder / ".git/hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/run\n")
        hook.chmod(0o755)
    guest.git("config", "core.fsmonitor", ".git/hooks/fsmonitor")
    guest.write("a", "dirty\n")
    await kept.keep(repository(vm_dir, guest), guest.brought)
    assert not (tmp_path / "run").exists()
    assert kept.files()["a"] == "dirty"


async def test_no_repository_and_no_folder(vm_dir: Path, guest: Guest) -> None:
    (guest.folder / ".git").rename(guest.folder / "elsewhere")
    with pytest.raises(NoRepository):
        await take(repository(vm_dir, guest), guest.brought)
    guest.folder.rename(guest.folder.with_name("moved"))
    with pytest.raises(NoRepository):
        await take(repository(vm_dir, guest), guest.brought)


async def test_no_git(vm_dir: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    from banger.workspace import guestrepository

    monkeypatch.setattr(guestrepository, "GIT", "git-that-is-not-there")
    with pytest.raises(GitMissing):
        await take(repository(vm_dir, guest), guest.brought)


async def test_output_is_capped(vm_dir: Path, guest: Guest, tmp_path: Path) -> None:
    there = repository(vm_dir, guest)
    blob = git(guest.folder, "hash-object", "-w", "--stdin", stdin=b"x" * 100_000)
    with pytest.raises(GitFailed, match="more than 1000 bytes"):
        await there.git("cat-file", "blob", blob, most=1000)
    with (tmp_path / "sink").open("wb") as sink:
        with pytest.raises(GitFailed, match="more than 1000 bytes"):
            await there.git_to(sink, "cat-file", "blob", blob, most=1000)
        assert not (await there.git_to(sink, "cat-file", "blob", blob, most=100_000)).status
    assert (tmp_path / "sink").stat().st_size == 100_000
    await there.aclose()


async def test_guest_is_gone(tmp_path: Path, guest: Guest) -> None:
    with pytest.raises(BangerError):
        await take(GuestRepository(str(tmp_path), str(guest.folder)), guest.brought)


async def test_linked_work_trees(vm_dir: Path, guest: Guest, kept: Kept, tmp_path: Path) -> None:
    """Inside as a repository of its own, without the refs twice; outside its commits, not its files."""
    work = guest.commit("work", a="w\n")
    guest.git("worktree", "add", "-q", "-b", "side", "inside")
    side = commit(guest.folder / "inside", "side", s="s\n")
    (guest.folder / "inside/dirty").write_text("d\n")
    guest.git("worktree", "add", "-q", "--detach", str(tmp_path / "outside"))
    lonely = commit(tmp_path / "outside", "lonely", o="o\n")
    await kept.keep(repository(vm_dir, guest), guest.brought)
    current = await kept.current()
    assert (current["heads/main"], current["heads/side"]) == (work, side)
    assert current[f"reflog/{lonely[:12]}"] == lonely
    inside = {name: commit for name, commit in current.items() if name.startswith("sub/")}
    assert set(inside) == {"sub/inside/HEAD", "sub/inside/worktree"}
    assert kept.files("sub/inside/worktree") == {"a": "w", "b": "b", "s": "s", "dirty": "d"}
    await kept.keep(await guest.repository(tmp_path), guest.brought)
    assert kept.files("sub/inside/worktree") == {"a": "w", "b": "b", "s": "s", "dirty": "d"}
    assert set(current.values()) <= set(kept.git("rev-list", "--all").split())
    kept.whole()


async def test_names_that_no_tree_may_have(vm_dir: Path, guest: Guest, kept: Kept) -> None:
    guest.write("git~1", "x\n")
    guest.write("fine", "y\n")
    snapshot = await kept.keep(repository(vm_dir, guest), guest.brought)
    assert kept.files() == {"a": "a 2", "b": "b", "fine": "y"}
    assert any("'git~1'" in note for note in snapshot.notes)


async def test_remote_tracking_refs_are_not_kept(vm_dir: Path, guest: Guest, kept: Kept) -> None:
    """Though git is asked for all heads at once."""
    guest.git("checkout", "-q", "--detach")
    theirs = guest.commit("theirs", t="t\n")
    guest.git("update-ref", "refs/remotes/origin/deep/main", theirs)
    guest.git("checkout", "-q", "main")
    guest.git("reflog", "expire", "--expire=now", "--all")
    await kept.keep(repository(vm_dir, guest), guest.brought)
    assert not kept.store.exists


async def test_racy_index(vm_dir: Path, guest: Guest, kept: Kept) -> None:
    """The copy of the index has its time, to the nanosecond, though it went through the host."""
    guest.write("a", "1\n")
    guest.git("add", "a")
    guest.write("a", "2\n")
    for path in (guest.folder / "a", guest.folder / ".git/index"):
        os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    there = repository(vm_dir, guest)
    target = f"{await there.scratch()}/worktree"
    assert await there.copy_index(target)
    assert Path(target).read_bytes() == (guest.folder / ".git/index").read_bytes()
    assert os.stat(target).st_mtime_ns == 1_700_000_000_123_456_789
    assert os.stat(target).st_mode & 0o777 == 0o600
    await there.aclose()
    await kept.keep(repository(vm_dir, guest), guest.brought)
    assert kept.files()["a"] == "2"


async def test_no_index_and_no_index_that_is_a_file(vm_dir: Path, guest: Guest, kept: Kept) -> None:
    index = guest.folder / ".git/index"
    index.unlink()
    await kept.keep(repository(vm_dir, guest), guest.brought)
    assert not kept.store.exists
    index.mkdir()
    there = repository(vm_dir, guest)
    with pytest.raises(WorkNotKept, match="no plain file"):
        await take(there, guest.brought)
    await there.aclose()


async def test_what_an_earlier_keep_left(vm_dir: Path, guest: Guest, kept: Kept) -> None:
    left = vm_dir / "banger-keep/0123456789abcdef/worktree.lock"
    left.parent.mkdir(parents=True)
    left.write_text("of a daemon that was killed")
    guest.write("a", "dirty\n")
    await kept.keep(repository(vm_dir, guest), guest.brought)
    assert kept.files()["a"] == "dirty"
    assert not left.parent.exists()


async def test_no_place_for_temporary_files(vm_dir: Path, guest: Guest) -> None:
    (vm_dir / "file").write_text("")
    roots = (str(vm_dir / "missing"), str(vm_dir / "file"))
    there = GuestRepository(str(vm_dir), str(guest.folder), scratch_roots=roots)
    with pytest.raises(WorkNotKept, match="no temporary folder"):
        await take(there, guest.brought)
    await there.aclose()


async def test_objects_made_between_two_questions(vm_dir: Path, guest: Guest) -> None:
    """One git answers both: what it did not have, it looks for again; packed meanwhile, too."""
    there = repository(vm_dir, guest)
    made = git(guest.folder, "hash-object", "--stdin", stdin=b"later\n")
    assert await existing(there, [made, "HEAD"]) == {"HEAD": (guest.brought.base_commit, "commit")}
    git(guest.folder, "hash-object", "-w", "--stdin", stdin=b"later\n")
    assert await existing(there, [made]) == {made: (made, "blob")}
    moved = guest.commit("moved", a="m\n")
    guest.git("gc", "-q", "--prune=now")
    assert await existing(there, ["HEAD", moved, made]) == {
        "HEAD": (moved, "commit"), moved: (moved, "commit")
    }  # fmt: skip
    await there.aclose()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("printf 'one\\ntwo\\nthree\\n'", "nonsense"),
        ("echo one; printf two", "before it had answered"),
        ("echo fatal: broken >&2; exit 128", "before it had answered"),
        ("yes", "nonsense"),
        ("exec tr '\\000' x < /dev/zero", "said more than"),
    ],
)
async def test_git_that_answers_too_much_or_too_little(
    vm_dir: Path, guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, why: str
) -> None:
    from banger.workspace import guestlookup, guestrepository

    monkeypatch.setattr(guestlookup, "LISTING", 1 << 20)
    program = tmp_path / "git"
    program.write_text(f"#!/bin/sh\nread line\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setattr(guestrepository, "GIT", str(program))
    there = repository(vm_dir, guest)
    with pytest.raises(GitFailed, match=why):
        await there.look_up([b"HEAD", b"MERGE_HEAD"])
    monkeypatch.setattr(guestrepository, "GIT", "git")
    assert len(await there.look_up([b"HEAD"])) == 1, "asked anew"
    await there.aclose()


async def test_head_of_a_linked_work_tree_that_is_damaged(vm_dir: Path, guest: Guest, kept: Kept) -> None:
    for name in ("one", "two"):
        guest.git("worktree", "add", "-q", "--detach", str(guest.folder.with_name(name)))
    lonely = commit(guest.folder.with_name("two"), "lonely", o="o\n")
    (guest.folder / ".git/worktrees/one/HEAD").write_text("1" * 40 + "\n")
    await kept.keep(repository(vm_dir, guest), guest.brought)
    assert await kept.current() == {f"reflog/{lonely[:12]}": lonely}
