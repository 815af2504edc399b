"""What a guest's crash tears in a repository: the last whole state of each ref is what is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from banger.workspace.heal import heal
from banger.workspace.hostrepository import HostRepository
from banger.workspace.snapshot import Brought, take
from banger.workspace.store import WorkStore
from tests.unit.workspace.test_stage import git

pytestmark = pytest.mark.anyio


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    made.mkdir()
    git(made, "init", "-q", "-b", "main")
    for number in range(4):
        (made / f"f{number}").write_text(f"{number}\n")
        git(made, "add", ".")
        git(made, "commit", "-q", "-m", str(number))
        if number == 1:
            git(made, "gc", "-q")
            git(made, "branch", "old")
    return made


async def healed(tree: Path) -> tuple[HostRepository, tuple[str, ...]]:
    own = tree.parent / "own"
    own.mkdir()
    # copied, as what is staged is: in place git would believe the index, and not read the files
    staged = tree.parent / "staged"
    shutil.copytree(tree, staged, symlinks=True)
    repository = await HostRepository.adopt(str(staged), str(own), how="disk")
    return repository, await heal(repository, str(staged))


async def asked(repository: HostRepository, *words: str) -> str:
    done = await repository.git(*words)
    assert done.status == 0, done.stderr
    return done.stdout.decode().strip()


def lose(tree: Path, name: str) -> None:
    wanted = git(tree, "rev-parse", name)
    (tree / ".git/objects" / wanted[:2] / wanted[2:]).unlink()


async def test_a_whole_one_stays(repo: Path) -> None:
    repository, notes = await healed(repo)
    assert notes == ()
    assert await asked(repository, "rev-parse", "main", "old") == git(repo, "rev-parse", "main", "old")


@pytest.mark.parametrize("lost", ["main", "main^{tree}", "main:f3"])
async def test_a_lost_object_goes_back_one(repo: Path, tmp_path: Path, lost: str) -> None:
    before = git(repo, "rev-parse", "main~1")
    lose(repo, lost)
    repository, notes = await healed(repo)
    assert await asked(repository, "rev-parse", "HEAD", "main") == f"{before}\n{before}"
    assert notes == (
        f"What 'refs/heads/main' was last never reached the disk: it is kept as it was at {before[:12]}.",
    )
    # and what keeps it takes all of it: the lost file is still there, as one that is not committed
    snapshot = await take(repository, Brought())
    store = WorkStore(str(tmp_path / "store"))
    await store.receive(snapshot.parts)
    kept = {ref.name: ref.commit for ref in await store.kept()}
    assert kept["heads/main"] == before
    files = await repository.git("ls-tree", "--name-only", kept.get("worktree", kept["index"]))
    assert files.stdout == b"f0\nf1\nf2\nf3\n"


async def test_an_empty_ref(repo: Path) -> None:
    tip = git(repo, "rev-parse", "main")
    (repo / ".git/refs/heads/main").write_bytes(b"")
    repository, notes = await healed(repo)
    assert await asked(repository, "rev-parse", "main") == tip
    assert len(notes) == 1


async def test_a_detached_head(repo: Path) -> None:
    git(repo, "checkout", "-q", "--detach")
    (repo / "g").write_text("g\n")
    git(repo, "add", ".")
    git(repo, "commit", "-q", "-m", "detached")
    lose(repo, "HEAD")
    main = git(repo, "rev-parse", "main")
    repository, notes = await healed(repo)
    assert await asked(repository, "rev-parse", "HEAD") == main
    assert "checked out" in notes[0]


async def test_without_a_reflog_it_is_dropped(repo: Path) -> None:
    git(repo, "branch", "side")
    git(repo, "commit", "-q", "--allow-empty", "-m", "x")
    git(repo, "update-ref", "refs/other/x", "HEAD")
    lose(repo, "HEAD")
    side = git(repo, "rev-parse", "side")
    repository, notes = await healed(repo)
    assert await asked(repository, "rev-parse", "HEAD", "side") == f"{side}\n{side}"
    assert (await repository.git("rev-parse", "-q", "--verify", "refs/other/x")).status
    assert len(notes) == 2


async def test_nothing_to_heal(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    _repository, notes = await healed(tmp_path / "tree")
    assert notes == ()


async def test_what_no_crash_did_is_left(repo: Path) -> None:
    """Each ref lacks an object, as in a clone that was never whole: git says so to whoever keeps the work."""
    git(repo, "checkout", "-q", "--orphan", "other")
    git(repo, "commit", "-q", "-m", "one")
    git(repo, "update-ref", "-d", "refs/heads/main")
    git(repo, "update-ref", "-d", "refs/heads/old")
    lose(repo, "HEAD^{tree}")
    tip = git(repo, "rev-parse", "HEAD")
    (repo / ".git/logs/HEAD").unlink()
    repository, notes = await healed(repo)
    assert notes == ()
    assert await asked(repository, "rev-parse", "HEAD") == tip
