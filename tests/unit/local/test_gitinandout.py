"""What is brought in is known on the way out: of a guest in which nothing was done, nothing is kept."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from banger.local.gitsource import examine
from banger.workspace.hostrepository import HostRepository
from banger.workspace.snapshot import Brought, Snapshot, take
from tests.unit.local.gitrepos import Repo, arrive, change, make, rich
from tests.unit.local.test_gitsubmodules import nested


def changed(tmp_path: Path) -> Repo:
    repo = rich(tmp_path)
    change(repo)
    return repo


def conflict(tmp_path: Path) -> Repo:
    repo = make(tmp_path)
    repo.git("switch", "-q", "-c", "other")
    repo.write("a.txt", "theirs\n")
    repo.commit()
    repo.git("switch", "-q", "main")
    repo.write("a.txt", "ours\n")
    repo.commit()
    repo.git("merge", "-q", "other", check=False)
    return repo


def line_ends(tmp_path: Path) -> Repo:
    repo = make(tmp_path)
    (repo.home / ".gitconfig").write_text("[core]\n\tautocrlf = true\n")
    repo.write("dos.txt", b"a\r\nb\r\n")
    repo.commit()
    repo.write("dos.txt", b"a\r\nc\r\n")
    repo.write("mixed.txt", b"a\r\nb\n")
    repo.git("add", "mixed.txt", check=False)
    return repo


def filtered(tmp_path: Path) -> Repo:
    repo = make(tmp_path)
    repo.git("config", "filter.rot.clean", "tr a-y b-z")
    repo.git("config", "filter.rot.smudge", "tr b-z a-y")
    repo.write(".gitattributes", "*.rot filter=rot\n")
    repo.write("x.rot", "abc\n")
    repo.commit()
    return repo


def sparse(tmp_path: Path) -> Repo:
    repo = rich(tmp_path)
    repo.git("sparse-checkout", "set", "bin")
    return repo


def stashes(tmp_path: Path) -> Repo:
    repo = rich(tmp_path)
    for text in ("stashed\n", "again\n"):
        repo.write("a.txt", text)
        repo.git("stash", "-q")
    repo.git("tag", "-a", "-m", "x", "v1")
    repo.git("branch", "ünï", "HEAD~1")
    return repo


async def kept_of(guest: Repo, brought: Brought, own: Path) -> tuple[list[str], Snapshot]:
    """Names of what would be kept."""
    own.mkdir()
    repository = await HostRepository.adopt(str(guest.path), str(own), how="disk")
    try:
        snapshot = await take(repository, brought)
        await snapshot.aclose()
        return [name for part in snapshot.parts for name, _ in part.tips], snapshot
    finally:
        await repository.aclose()


STATES = (rich, changed, conflict, line_ends, filtered, sparse, stashes)
MODES = ("shallow_overlay", "full_copy", "metadata_only")


@pytest.mark.parametrize(
    ("state", "mode"), [*((state, mode) for state in STATES for mode in MODES), (nested, "full_copy")]
)
def test_nothing_is_new(tmp_path: Path, state: Callable[[Path], Repo], mode: str) -> None:
    repo = state(tmp_path)
    if state is nested:
        repo.write("libs/mid/a.txt", "changed in it\n")
        repo.git("-C", "libs/mid/deep", "commit", "-q", "--allow-empty", "-m", "only in it")
    (tmp_path / "tmp").mkdir()
    source = examine(
        str(repo.path),
        mode=mode,
        include_untracked=mode == "full_copy",
        account=repo.account(TMPDIR=str(tmp_path / "tmp")),
    )
    guest, travel = arrive(source, tmp_path / "guest")
    brought = Brought(
        base_commit=travel.workspace["base_commit"],
        brought_commit=travel.workspace["brought_commit"],
        metadata_only=mode == "metadata_only",
        refs=travel.refs,
    )
    kept, snapshot = asyncio.run(kept_of(guest, brought, tmp_path / "own"))
    assert kept == []
    assert snapshot.head == source.base_commit
    assert snapshot.branch == "main"
    assert os.listdir(tmp_path / "tmp") == []
