"""Any sequence of changes to a repository: what travels is what git says there is, and nothing is touched."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banger.local.gitplan import plan
from banger.local.gitsource import examine
from tests.unit.local.gitrepos import Repo, arrive, check_same, fingerprint

NAMES = ("a", "b", "d/a", "d/e", "d/e/f", "ü", "n\nl", " x", "-q", "*.c", ":(top)", "d.x")
CONTENT = (b"", b"one\n", b"two\n", b"two\r\nlines\r\n", b"\0binary\r\n", b"x" * 3000)
names = st.sampled_from(NAMES)
steps = st.one_of(
    st.tuples(st.just("write"), names, st.sampled_from(CONTENT)),
    st.tuples(st.just("link"), names, st.sampled_from((b"a", b"d", b"nowhere", b"/etc/passwd"))),
    st.tuples(
        st.sampled_from(("stage", "unstage", "intend", "delete", "chmod", "skip")), names, st.just(b"")
    ),
    st.tuples(st.sampled_from(("commit", "stash", "detach", "merge")), st.just(""), st.just(b"")),
)


def apply(repo: Repo, what: str, name: str, data: bytes) -> None:
    """What is impossible where things stand does nothing, as for a user."""
    path = repo.path / name
    literal = ("--literal-pathspecs",)
    try:
        if what in ("write", "link") and not path.is_dir():
            if os.path.lexists(path):
                path.unlink()
            path.parent.mkdir(parents=True, exist_ok=True)
            if what == "write":
                path.write_bytes(data)
            else:
                path.symlink_to(os.fsdecode(data))
        elif what == "delete" and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif what == "delete":
            path.unlink()
        elif what == "chmod" and not path.is_symlink():
            path.chmod(path.stat().st_mode ^ 0o111)
    except OSError:
        return
    if what == "stage":
        repo.git(*literal, "add", "-A", "--", name, check=False)
    elif what == "unstage":
        repo.git(*literal, "rm", "-q", "-r", "--cached", "-f", "--", name, check=False)
    elif what == "intend":
        repo.git(*literal, "add", "-N", "--", name, check=False)
    elif what == "skip":
        repo.git("update-index", "--skip-worktree", "--", name, check=False)
    elif what == "commit":
        repo.git("commit", "-q", "--allow-empty", "-m", "step", check=False)
    elif what == "stash":
        repo.git("stash", "-q", check=False)
    elif what == "detach":
        repo.git("checkout", "-q", "--detach", check=False)
    elif what == "merge":
        repo.git("merge", "-q", "-m", "merged", "other", check=False)


@pytest.mark.limit(300)
@settings(max_examples=20, deadline=None)
@given(
    st.lists(steps, min_size=2, max_size=14),
    st.sampled_from(("shallow_overlay", "full_copy")),
    st.booleans(),
    st.sampled_from(("false", "true", "input")),
)
def test_any_state_travels(
    done: list[tuple[str, str, bytes]], mode: str, include_untracked: bool, autocrlf: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repo = Repo(folder / "site", folder / "home")
        repo.git("config", "core.autocrlf", autocrlf)
        repo.git("config", "core.safecrlf", "false")
        repo.write("a", "first\n")
        repo.write("d/a", "first\n")
        repo.commit("first")
        repo.git("switch", "-q", "-c", "other")
        repo.write("a", "other\n")
        repo.commit("other")
        repo.git("switch", "-q", "main")
        for step in done:
            apply(repo, *step)
        repo.git("status")
        before = fingerprint(repo.path)
        source = examine(
            str(repo.path), mode=mode, include_untracked=include_untracked, account=repo.account(TMPDIR=name)
        )
        planned = plan(source)
        guest, travel = arrive(source, folder / "guest")
        assert fingerprint(repo.path) == before
        check_same(repo, guest)
        assert travel.plan.files == planned.files
        assert travel.plan.untracked_left == planned.untracked_left
        assert not [one for one in os.listdir(folder) if one.startswith("banger-travel")]
        # what the way out would find, of a guest in which nothing was done
        guest.git("add", "-A")
        assert guest.git("write-tree").strip() == guest.head("refs/banger/base^{tree}")
