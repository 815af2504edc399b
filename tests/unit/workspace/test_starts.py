"""How many programs a keep starts in a guest: in an emulated one a start is a good part of a second.

The real agent, real git. Who adds a start to these numbers makes every `vm stop` with a workspace slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from banger.guest.agent import AgentClient
from banger.guest.stream import ExecStream
from tests.unit.workspace.guestgit import Guest, Kept, git
from tests.unit.workspace.test_guestrepository import repository

pytestmark = pytest.mark.anyio

ASKED = (
    "for-each-ref", "cat-file", "config", "ls-files", "write-tree", "add", "write-tree", "reflog", "rev-list",
)  # fmt: skip
"""Of every repository; the first three at once, and the next two."""


class Started:
    """The git commands that ran in the guest since it was asked last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._argvs: list[Sequence[str]] = []
        real = AgentClient.exec

        async def counted(
            client: AgentClient,
            argv: Sequence[str],
            env: Mapping[str, str] | None = None,
            *,
            cwd: str = "",
            stdin: bool = False,
        ) -> ExecStream:
            self._argvs.append(argv)
            return await real(client, argv, env, cwd=cwd, stdin=stdin)

        monkeypatch.setattr(AgentClient, "exec", counted)

    def __call__(self) -> list[str]:
        argvs, self._argvs = self._argvs, []
        return [_command(argv) for argv in argvs]


def _command(argv: Sequence[str]) -> str:
    assert argv[0] == "git", f"{argv[0]} need not be in a guest"
    words = iter(argv[1:])
    for word in words:
        if word == "-c":
            next(words)
        elif not word.startswith("--"):
            return word
    raise AssertionError(argv)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    return Started(monkeypatch)


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


async def test_as_brought(vm_dir: Path, guest: Guest, kept: Kept, started: Started) -> None:
    await kept.keep(repository(vm_dir, guest), guest.brought)
    assert started() == [*ASKED]


async def test_changed_and_nothing_changed_since(
    vm_dir: Path, guest: Guest, kept: Kept, started: Started
) -> None:
    guest.commit("work", a="w\n")
    guest.git("branch", "other")
    guest.write("staged", "s\n")
    guest.git("add", "staged")
    guest.write("b", "dirty\n")
    guest.write("untracked", "u\n")
    first = await kept.keep(repository(vm_dir, guest), guest.brought)
    assert set(await kept.current()) == {"HEAD", "heads/main", "heads/other", "index", "worktree"}
    look = [*ASKED[:7], "diff-tree", *ASKED[7:]]
    assert started() == [*look, "commit-tree", "commit-tree", "pack-objects"]
    again = await kept.keep(repository(vm_dir, guest), guest.brought)
    assert started() == look
    assert len(look) == 10
    assert again.changes == first.changes
    assert (first.changes.ahead, first.changes.staged, first.changes.unstaged) == (1, 1, 1)


async def test_files_alone(vm_dir: Path, guest: Guest, kept: Kept, started: Started) -> None:
    guest.write("b", "dirty\n")
    await kept.keep(repository(vm_dir, guest), guest.brought)
    assert started() == [*ASKED[:7], "diff-tree", *ASKED[7:], "commit-tree", "pack-objects"]


async def test_repository_inside(vm_dir: Path, guest: Guest, kept: Kept, started: Started) -> None:
    """As many again."""
    inner = guest.folder / "it"
    inner.mkdir()
    git(inner, "init", "-q", "-b", "trunk")
    (inner / "f").write_text("f\n")
    git(inner, "add", "f")
    git(inner, "commit", "-q", "-m", "first")
    await kept.keep(repository(vm_dir, guest), guest.brought)
    started()
    await kept.keep(repository(vm_dir, guest), guest.brought)
    around = [*ASKED[:7], "diff-tree", "rev-parse", *ASKED[7:], "ls-tree"]
    assert sorted(started()) == sorted([*around, *ASKED])
