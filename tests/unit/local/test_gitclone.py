"""`workspace pull --into`: a new clone of kept work alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from banger.errors import BangerError
from banger.local import gitclone
from banger.local.kepttips import WorkRefused, read_kept
from tests.fakes.keptwork import commit, git
from tests.unit.local.pulldesk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


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
