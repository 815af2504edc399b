"""What a client says of a workspace is text from outside: taken as it is, or refused by its field."""

from __future__ import annotations

from typing import Any

import pytest

from banger.api.requests import SetWorkspace
from banger.errors import BangerError, ErrorCode
from banger.vm.workspaces import MAX_REFS, is_ref_name, workspace_of

ONE, TWO, LONG = "1" * 40, "2" * 40, "3" * 64


def request(**changes: Any) -> SetWorkspace:
    fields: dict[str, Any] = {
        "source_path": "/home/ann/app/src",
        "repo_root": "/home/ann/app",
        "repo_name": "app",
        "guest_path": "/root/repo",
        "mode": "shallow_overlay",
        "head_commit": ONE,
        "base_commit": ONE,
        "brought_commit": TWO,
        "current_branch": "main",
        "branch_name": "fix/ü",
        "refs": {
            "HEAD": ONE,
            "heads/main": ONE,
            "stash-1": TWO,
            "sub/a b%0A/heads/x".replace(" ", "%20"): ONE,
        },
    }
    return SetWorkspace(**{**fields, **changes})


def test_it_is_taken_as_said_with_the_time() -> None:
    workspace = workspace_of(request(readonly=True), "ab" * 32)
    assert (workspace.vm_id, workspace.repo_root, workspace.readonly) == ("ab" * 32, "/home/ann/app", True)
    assert (workspace.head_commit, workspace.brought_commit) == (ONE, TWO)
    assert workspace.prepared_at is not None
    sha256 = workspace_of(request(head_commit=LONG, base_commit=LONG, brought_commit=LONG, refs={}), "x")
    assert sha256.head_commit == LONG


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guest_path", "/root/other"),
        ("guest_path", "/root/repo/../.ssh"),
        ("mode", "everything"),
        ("source_path", "relative"),
        ("repo_root", "/a\0b"),
        ("repo_root", "/" + "x" * 5000),
        ("repo_name", ""),
        ("repo_name", ".."),
        ("repo_name", "a/b"),
        ("head_commit", "HEAD"),
        ("head_commit", ONE[1:]),
        ("base_commit", "--output=/etc/passwd"),
        ("brought_commit", "A" * 40),
        ("brought_commit", LONG),
        ("branch_name", "-x"),
        ("branch_name", "a..b"),
        ("current_branch", "x\n"),
        ("refs", {"../../etc": ONE}),
        ("refs", {"heads/a.lock": ONE}),
        ("refs", {"heads/main": "main"}),
        ("refs", {f"heads/{number}": ONE for number in range(MAX_REFS + 1)}),
    ],
)
def test_what_is_no_such_thing_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(BangerError) as refused:
        workspace_of(request(**{field: value}), "id")
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    assert refused.value.brief.startswith(field)
    assert len(refused.value.brief) < 500


@pytest.mark.parametrize("name", ["main", "HEAD", "fix/a-b", "ünï", "a@b", "v1.2"])
def test_names_that_git_takes(name: str) -> None:
    assert is_ref_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a/", "a//b", ".a", "a/.b", "a.", "@", "a@{1}", "a b", "a~", "a\\b", "x" * 2000, "a/-b"],
)
def test_names_that_git_does_not_take(name: str) -> None:
    assert not is_ref_name(name)
