"""git through the real agent: the same work as on the host, and no belief in what comes back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from banger.errors import BangerError
from banger.workspace.errors import GitFailed, GitMissing, NoRepository
from banger.workspace.guestrepository import GuestRepository
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
    assert not list(vm_dir.glob("banger-keep-*")), "the scratch folder is gone"


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
