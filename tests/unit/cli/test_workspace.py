"""`vm run PATH`, `workspace prepare` up to the guest: what is refused, listed, said; where exec starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from banger.client.client import Client
from banger.client.copy import is_there, unpack_from
from banger.config.paths import resolve_paths
from banger.errors import BangerError, ErrorCode
from tests.unit.agent.conftest import Agent
from tests.unit.agent.conftest import agent as agent
from tests.unit.agent.copying import AgentsClient, leftovers
from tests.unit.cli.conftest import Instance
from tests.unit.local.gitrepos import Repo

ONE = "1" * 40


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    made = Repo(tmp_path / "app", tmp_path / "home-of-ann")
    made.write("README", "hello\n")
    made.write("src/main.c", "int main(void) { return 0; }\n")
    made.write("na\x1b[31mme\nof two lines", "odd\n")
    made.commit()
    made.write(".env", "SECRET=1\n")
    return made


def workspace(repo: Repo, **changes: Any) -> dict[str, Any]:
    return {
        "source_path": str(repo.path),
        "repo_root": str(repo.path),
        "repo_name": "app",
        "guest_path": "/root/repo",
        "mode": "shallow_overlay",
        "head_commit": repo.head(),
        "base_commit": repo.head(),
        "brought_commit": repo.head(),
        "current_branch": "main",
        "branch_name": "main",
        **changes,
    }


def client_of(banger: Instance) -> Client:
    return Client(resolve_paths({"BANGER_HOME": str(banger.home)}), autostart=False)


def test_dry_run_lists_what_would_travel_and_starts_nothing(fresh: Instance, repo: Repo) -> None:
    for words in (
        ("vm", "run", str(repo.path), "--dry-run"),
        ("workspace", "prepare", "web", str(repo.path), "--dry-run"),
    ):
        done = fresh(*words)
        assert done.stdout.decode().splitlines() == ["README", "na\\x1b[31mme\\nof two lines", "src/main.c"]
        said = done.stderr.decode()
        assert "would travel: 3 files, " in said
        assert "left behind: 1 untracked file (.env); --include-untracked brings them" in said
        assert "\x1b" not in said
    done = fresh("vm", "run", "--dry-run", "--include-untracked", str(repo.path))
    assert ".env" in done.stdout.decode().splitlines()
    assert "left behind" not in done.stderr.decode()
    shown = json.loads(fresh("workspace", "prepare", "web", str(repo.path), "--dry-run", "--json").stdout)
    assert shown["untracked_left"] == [".env"]
    assert not (fresh.home / "run").exists()


def test_what_cannot_go_is_refused_before_a_vm_is_made(fresh: Instance, repo: Repo, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "bare"], check=True)
    plain = tmp_path / "plain"
    plain.mkdir()
    for words, said in (
        (["web"], "a command goes behind --"),
        ([str(plain)], "git"),
        ([str(tmp_path / "bare")], "bare"),
        ([str(repo.path), "--branch", "a..b"], "no name for a branch"),
        ([str(repo.path), "--branch", "b", "--from", "nowhere"], "nowhere"),
    ):
        done = fresh("vm", "run", "--rm", *words, "--", "true", status=125)
        assert said in done.stderr.decode(), words
        assert not (fresh.home / "run").exists()


def test_exec_starts_in_the_workspace_and_says_when_the_host_moved_on(banger: Instance, repo: Repo) -> None:
    """The agent's guest here is this host, where there is no such folder: that is said, too."""
    banger("vm", "create", "--name", "moving")
    with client_of(banger) as client:
        client.set_workspace("moving", **workspace(repo))
    done = banger("vm", "exec", "moving", "--", "pwd")
    if not os.path.isdir("/root/repo"):
        gone = "banger: warning: /root/repo is not in the guest any more: this starts elsewhere\n"
        assert done.stderr.decode() == gone
    assert banger("vm", "exec", "-w", "/tmp", "moving", "--", "pwd").stderr == b""
    before, after = repo.head(), repo.commit("the host moves on")
    done = banger("vm", "exec", "-w", "/tmp", "moving", "--", "pwd")
    assert done.stdout == b"/tmp\n"
    assert done.stderr.decode() == (
        f"banger: warning: {repo.path} has moved on from {before[:7]} to {after[:7]}; "
        f"again: banger workspace prepare --replace moving {repo.path}\n"
    )
    assert banger("--quiet", "vm", "exec", "-w", "/tmp", "moving", "--", "pwd").stderr == b""
    shown = banger("vm", "show", "moving").stdout.decode()
    assert re.search(f"^repository +{re.escape(str(repo.path))}$", shown, re.MULTILINE)
    assert "/root/repo (main, shallow_overlay)" in shown
    assert " app " in banger("vm", "list").stdout.decode()
    banger("vm", "delete", "moving")


def test_auto_prepare_does_not_replace_work(banger: Instance, repo: Repo) -> None:
    banger("vm", "create", "--name", "working")
    done = banger("vm", "exec", "--auto-prepare", "working", "--", "true", status=125)
    assert b"banger workspace prepare working PATH" in done.stderr
    with client_of(banger) as client:
        client.set_workspace("working", **workspace(repo))
    banger("vm", "exec", "--auto-prepare", "-w", "/tmp", "working", "--", "true")
    repo.commit("the host moves on")
    done = banger("vm", "exec", "--auto-prepare", "-w", "/tmp", "working", "--", "true", status=125)
    assert b"banger workspace pull working, then: banger workspace prepare --replace working" in done.stderr
    banger("vm", "delete", "working")


def test_a_tree_takes_anothers_place_in_one_step(agent: Agent, repo: Repo, tmp_path: Path) -> None:
    """As prepare --replace does it: by the agent, which needs nothing of the guest's."""
    from banger.local.gitsource import examine
    from banger.local.gittravel import open_travel

    client = AgentsClient(agent)
    guest = tmp_path / "guest"
    (guest / "repo").mkdir(parents=True)
    (guest / "repo" / "old").write_text("old")
    (guest / "repo" / "shut").mkdir(mode=0o500)
    assert is_there(client, "vm", str(guest / "repo"))
    assert not is_there(client, "vm", str(guest / "other"))
    source = examine(str(repo.path), account=repo.account())
    with open_travel(source) as travel:

        def broken(write: Any) -> None:
            travel.write_tar(write)
            raise BangerError(ErrorCode.BUSY, "broken off")

        with pytest.raises(BangerError, match="broken off"):
            unpack_from(client, "vm", broken, str(guest), replace=True)
        assert sorted(os.listdir(guest / "repo")) == ["old", "shut"]
        unpack_from(client, "vm", travel.write_tar, str(guest), replace=True, aside="repo.before")
        assert sorted(os.listdir(guest)) == ["repo", "repo.before"]
        assert (guest / "repo.before" / "old").read_text() == "old"
        assert (guest / "repo" / "README").read_text() == "hello\n"
        (guest / "repo" / "stale").write_text("stale")
        unpack_from(client, "vm", travel.write_tar, str(guest), replace=True)
        assert not (guest / "repo" / "stale").exists()
        (guest / "repo").rename(guest / "away")
        unpack_from(client, "vm", travel.write_tar, str(guest), replace=True)
        assert (guest / "repo" / "src" / "main.c").exists()
        with pytest.raises(BangerError, match="cannot put aside"):
            unpack_from(client, "vm", travel.write_tar, str(guest), replace=True, aside="away")
    status = subprocess.run(
        ["git", "-C", guest / "away", "status", "--porcelain"], capture_output=True, check=True
    )
    assert status.stdout == b""
    assert sorted(path.name for path in guest.iterdir() if not path.name.startswith(".")) == [
        "away",
        "repo",
        "repo.before",
    ]
    for left in leftovers(guest):  # what could not be put aside is there under the agent's name
        assert (Path(left) / "README").exists()
