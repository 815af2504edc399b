"""What is said of a repository's tools before anything is made, and lines of a log as they come."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from banger.client.agentconnection import AgentConnection
from banger.client.streams import Output
from banger.local.bootstrap import MAX_LINE, LogLines
from tests.unit.cli.conftest import Instance
from tests.unit.local.gitrepos import Repo


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    made = Repo(tmp_path / "app", tmp_path / "home-of-ann")
    made.write(".tool-versions", "maker 1.0\n")
    made.commit()
    made.write("mise.toml", "")
    return made


def test_without_nat_nothing_is_made(fresh: Instance, repo: Repo) -> None:
    for words in ((), ("--no-nat",), ("--rm",)):
        done = fresh("vm", "run", *words, str(repo.path), "--", "true", status=125)
        said = done.stderr.decode().splitlines()[-2:]
        assert said == [
            "banger: the repository's tools (.tool-versions) are fetched by the guest, "
            "which would have no NAT",
            "  --nat gives it one, --no-bootstrap goes without the tools",
        ]
    assert not (fresh.home / "run").exists()


def test_dry_run_says_what_would_be_installed(fresh: Instance, repo: Repo) -> None:
    said = fresh("vm", "run", "--dry-run", str(repo.path)).stderr.decode()
    assert "would be bootstrapped: mise install, for .tool-versions; needs --nat\n" in said
    said = fresh("vm", "run", "--dry-run", "--no-bootstrap", str(repo.path)).stderr.decode()
    assert "bootstrapped" not in said
    said = fresh("vm", "run", "--dry-run", "--mode", "metadata_only", str(repo.path)).stderr.decode()
    assert "bootstrapped" not in said
    prepare = ("workspace", "prepare", "web", str(repo.path), "--dry-run", "--json")
    assert json.loads(fresh(*prepare).stdout)["bootstrap"] == [".tool-versions"]
    both = json.loads(fresh(*prepare, "--include-untracked").stdout)
    assert both["bootstrap"] == [".tool-versions", "mise.toml"]
    assert json.loads(fresh(*prepare, "--no-bootstrap").stdout)["bootstrap"] == []


def test_no_bootstrap_is_of_a_repository(fresh: Instance) -> None:
    assert b"which repository?" in fresh("vm", "run", "--no-bootstrap", status=2).stderr


def test_a_log_line_by_line() -> None:
    heard: list[str] = []
    ours, theirs = socket.socketpair()
    with theirs:
        lines = LogLines(AgentConnection(ours), heard.append)
        for piece in (b"one\r\ntw", b"o\n\nthr\xff", b"ee", b"x" * (2 * MAX_LINE)):
            lines._output(Output(1), piece)
        lines.close()
    assert heard[:3] == ["one", "two", ""]
    assert heard[3].startswith("thr\ufffdeexxx")
    assert [len(line) for line in heard[3:]] == [MAX_LINE, MAX_LINE]
