"""Repositories inside the workspace: submodules, embedded ones with and without commits, damaged ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.workspace.guestgit import Guest, Kept, commit, git

pytestmark = pytest.mark.anyio


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


@pytest.fixture
def with_submodule(tmp_path: Path, guest: Guest) -> Guest:
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "trunk")
    commit(origin, "first", s="s 1\n")
    commit(origin, "second", s="s 2\n")
    guest.git("submodule", "--quiet", "add", str(origin), "lib/sub")
    guest.commit("with a submodule")
    guest.prepare()
    return guest


async def both_ways(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    """As the guest's git sees it where that may; the copy must come to the same."""
    await kept.keep(await guest.repository(tmp_path), guest.brought)
    refs = await kept.store.refs()
    await kept.keep(await guest.repository(tmp_path), guest.brought)
    assert await kept.store.refs() == refs
    kept.whole()


async def test_submodule_as_brought(with_submodule: Guest, kept: Kept, tmp_path: Path) -> None:
    snapshot = await kept.keep(await with_submodule.repository(tmp_path), with_submodule.brought)
    assert not kept.store.exists, snapshot.parts


async def test_work_in_a_submodule(with_submodule: Guest, kept: Kept, tmp_path: Path) -> None:
    inner = with_submodule.folder / "lib/sub"
    git(inner, "checkout", "-q", "-b", "fix")
    fixed = commit(inner, "fix", s="fixed\n")
    (inner / "dirty").write_text("dirty\n")
    await both_ways(with_submodule, kept, tmp_path)
    current = await kept.current()
    assert current["sub/lib/sub/heads/fix"] == current["sub/lib/sub/HEAD"] == fixed
    assert kept.files("sub/lib/sub/worktree") == {"s": "fixed", "dirty": "dirty"}
    assert kept.git("ls-tree", "refs/work/worktree", "lib/sub").split()[:3] == ["160000", "commit", fixed]


async def test_embedded_repositories(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    inner = guest.folder / "vendor/it"
    inner.mkdir(parents=True)
    git(inner, "init", "-q", "-b", "trunk")
    first = commit(inner, "first", f="f\n")
    (inner / "loose").write_text("loose\n")
    bare = guest.folder / "no commits"
    bare.mkdir()
    git(bare, "init", "-q", "-b", "trunk")
    (bare / "draft").write_text("draft\n")
    await both_ways(guest, kept, tmp_path)
    current = await kept.current()
    assert current["sub/vendor/it/HEAD"] == first
    assert kept.files("sub/vendor/it/worktree") == {"f": "f", "loose": "loose"}
    assert kept.files("sub/no%20commits/worktree") == {"draft": "draft"}
    assert kept.git("ls-tree", "-r", "refs/work/worktree", "vendor/it").startswith(f"160000 commit {first}")


async def test_submodule_without_its_repository(with_submodule: Guest, kept: Kept, tmp_path: Path) -> None:
    inner = with_submodule.folder / "lib/sub"
    (inner / ".git").unlink()
    (inner / "s").write_text("changed\n")
    await both_ways(with_submodule, kept, tmp_path)
    assert kept.git("show", "refs/work/worktree:lib/sub/s") == "changed"


async def test_submodule_that_is_not_checked_out(with_submodule: Guest, kept: Kept, tmp_path: Path) -> None:
    with_submodule.git("submodule", "--quiet", "deinit", "-f", "--all")
    await kept.keep(await with_submodule.repository(tmp_path), with_submodule.brought)
    assert not kept.store.exists


async def test_submodule_with_a_damaged_repository(with_submodule: Guest, kept: Kept, tmp_path: Path) -> None:
    shutil.rmtree(with_submodule.folder / ".git/modules/lib/sub/objects")
    (with_submodule.folder / "lib/sub/s").write_text("changed\n")
    snapshot = await kept.keep(await with_submodule.repository(tmp_path), with_submodule.brought)
    assert any("gone or damaged" in note for note in snapshot.notes)
    assert kept.files("sub/lib/sub/worktree") == {"s": "changed"}


async def test_gitfile_that_leads_out_of_the_staged_files(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    """Neither up, nor to a path of the host's, nor through a link."""
    secret = tmp_path / "hosts"
    secret.mkdir()
    git(secret, "init", "-q", "-b", "trunk")
    hidden = commit(secret, "of the host's", top="secret\n")
    (guest.folder / "way").symlink_to(secret)
    pointers = (f"{secret}/.git", "../../hosts/.git", "../way/.git", "../../../../../etc")
    for number, pointer in enumerate(pointers):
        inner = guest.folder / f"inner{number}"
        inner.mkdir()
        (inner / ".git").write_text(f"gitdir: {pointer}\n")
        (inner / "file").write_text("x\n")
    await kept.keep(await guest.repository(tmp_path), guest.brought)
    assert hidden not in set((await kept.store.refs()).values())
    for number in range(len(pointers)):
        assert kept.files(f"sub/inner{number}/worktree") == {"file": "x"}
        assert f"sub/inner{number}/HEAD" not in await kept.current()
