"""Submodules on the way into a guest: refused, or with a full copy all of them, as they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.errors import BangerError
from banger.local.gitplan import plan
from banger.local.gitsource import examine
from tests.unit.local.gitrepos import Repo, arrive, fingerprint, make

FILE = ("-c", "protocol.file.allow=always")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("banger.local.gittravel._place", lambda _account: str(folder))
    yield
    assert os.listdir(folder) == []


def nested(tmp_path: Path) -> Repo:
    """site has libs/mid (named mid), which has deep; and `absent`, which is not checked out."""
    deep = make(tmp_path, "deep")
    mid = make(tmp_path, "mid")
    mid.git(*FILE, "submodule", "add", "-q", str(deep.path), "deep")
    mid.commit("with deep")
    repo = make(tmp_path)
    repo.git(*FILE, "submodule", "add", "-q", "--name", "mid", str(mid.path), "libs/mid")
    repo.git(*FILE, "submodule", "add", "-q", str(deep.path), "absent")
    repo.git(*FILE, "submodule", "update", "-q", "--init", "--recursive")
    repo.commit("with submodules")
    repo.git("submodule", "deinit", "-q", "-f", "absent")
    repo.write("libs/zz", "behind it\n")
    repo.commit("more")
    return repo


@pytest.mark.parametrize("mode", ["shallow_overlay", "metadata_only"])
def test_refused_but_with_a_full_copy(tmp_path: Path, mode: str) -> None:
    repo = nested(tmp_path)
    with pytest.raises(BangerError, match=r"has submodules \(absent, libs/mid\)") as caught:
        examine(str(repo.path), mode=mode, account=repo.account())
    assert "full_copy" in str(caught.value.hint)
    # where the commit has none it does not matter what the index has
    source = examine(str(repo.path), mode=mode, branch="x", from_ref="HEAD~2", account=repo.account())
    assert not source.submodules
    with pytest.raises(BangerError, match="--from names another") as caught:
        examine(str(repo.path), mode="full_copy", branch="x", from_ref="HEAD~1", account=repo.account())


def test_a_full_copy_takes_them_along(tmp_path: Path) -> None:
    repo = nested(tmp_path)
    mid = Repo(repo.path / "libs/mid", repo.home, init=False)
    deep = Repo(repo.path / "libs/mid/deep", repo.home, init=False)
    mid.git("switch", "-q", "-c", "work")
    mid.write("a.txt", "committed in it\n")
    mid.git("commit", "-q", "-am", "in it")  # elsewhere than the gitlink now
    mid.write("a.txt", "changed in it\n")
    mid.write("staged", "staged in it\n")
    mid.git("add", "staged")
    deep.write("a.txt", "changed deep\n")
    deep.write("untracked", "x")
    os.utime(repo.path / "libs", (1, 1_234_567_890))
    before = fingerprint(repo.path)
    source = examine(str(repo.path), mode="full_copy", account=repo.account())
    guest, travel = arrive(source, tmp_path / "guest")
    assert fingerprint(repo.path) == before
    there = Repo(guest.path / "libs/mid", guest.home, init=False)
    below = Repo(guest.path / "libs/mid/deep", guest.home, init=False)
    for ours, theirs in ((repo, guest), (mid, there), (deep, below)):
        assert theirs.status() == ours.status()
        assert theirs.git("rev-parse", "HEAD") == ours.git("rev-parse", "HEAD")
        assert theirs.git("fsck") == ""
    assert guest.git("submodule", "status", "--recursive") == repo.git("submodule", "status", "--recursive")
    assert there.git("symbolic-ref", "--short", "HEAD") == "work\n"
    assert (guest.path / "libs/mid/.git").read_text() == "gitdir: ../../.git/modules/mid\n"
    assert os.listdir(guest.path / "absent") == []
    assert not (below.path / "untracked").exists()
    assert int((guest.path / "libs").stat().st_mtime) == int((repo.path / "libs").stat().st_mtime)
    brought = travel.workspace["brought_commit"]
    assert guest.git("ls-tree", brought, "libs/mid").split()[2] == mid.head()
    assert travel.refs["sub/libs/mid/HEAD"] == mid.head()
    assert travel.refs["sub/libs/mid/heads/work"] == mid.head()
    assert travel.refs["sub/libs/mid/worktree"] == there.head("refs/banger/base")
    assert travel.refs["sub/libs/mid/sub/deep/HEAD"] == deep.head()
    assert travel.plan.submodules_left == plan(source).submodules_left == ("absent",)
    assert travel.plan.untracked_left == ("libs/mid/deep/untracked",)
    assert travel.plan.files == plan(source).files
    assert "libs/mid/deep/a.txt" in travel.plan.files


def test_untracked_files_of_theirs_when_asked_for(tmp_path: Path) -> None:
    repo = nested(tmp_path)
    repo.write("libs/mid/.env", "x")
    source = examine(str(repo.path), mode="full_copy", include_untracked=True, account=repo.account())
    guest, travel = arrive(source, tmp_path / "guest")
    assert (guest.path / "libs/mid/.env").read_text() == "x"
    assert travel.plan.untracked_left == ()


@pytest.mark.parametrize("name", ["../../../evil", "a/../../b", "x\ny"])
def test_a_submodule_with_a_hostile_name(tmp_path: Path, name: str) -> None:
    repo = nested(tmp_path)
    text = (repo.path / ".gitmodules").read_text()
    quoted = name.replace("\n", "\\n")
    (repo.path / ".gitmodules").write_text(text.replace('"mid"', f'"{quoted}"'))
    source = examine(str(repo.path), mode="full_copy", account=repo.account())
    guest, _ = arrive(source, tmp_path / "guest")
    there = Repo(guest.path / "libs/mid", guest.home, init=False)
    assert there.status() == [""]
    assert sorted(os.listdir(tmp_path / "guest")) == ["home", "repo"]


def test_a_submodule_swapped_for_a_link_is_not_followed(tmp_path: Path) -> None:
    repo = nested(tmp_path)
    (repo.path / "libs/mid").rename(tmp_path / "elsewhere")
    (repo.path / "libs/mid").symlink_to(tmp_path / "elsewhere")
    source = examine(str(repo.path), mode="full_copy", account=repo.account())
    guest, travel = arrive(source, tmp_path / "guest")
    assert not os.path.lexists(guest.path / "libs/mid/a.txt")
    assert travel.plan.submodules_left == ("absent", "libs/mid")
