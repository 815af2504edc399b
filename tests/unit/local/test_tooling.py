"""Which repositories' tools are installed, when that is refused, what runs in the guest for it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.local.bootstrap import SCRIPT, why_failed, with_tools
from banger.local.tooling import find_tooling, in_background, tool_files

MISE = '#!/bin/sh\necho "$MISE_TRUSTED_CONFIG_PATHS: mise $*"\n'


@pytest.mark.parametrize(
    ("brought", "found"),
    [
        ((), ()),
        (("README", "sub/.mise.toml", "mise.toml.example", ".mise.toml/x"), ()),
        ((".tool-versions", "README"), (".tool-versions",)),
        (("mise.toml", ".tool-versions", ".mise.toml"), (".mise.toml", ".tool-versions", "mise.toml")),
    ],
)
def test_which_files_name_tools(brought: tuple[str, ...], found: tuple[str, ...]) -> None:
    assert tool_files(brought) == found


@pytest.mark.parametrize(
    ("configured", "asked", "goes"),
    [
        ("", None, False),
        ("", True, True),
        ("nat = false", None, False),
        ("nat = true", None, True),
        ("nat = true", False, False),
        ("nat = false", True, True),
    ],
)
def test_without_a_way_out_it_is_refused(
    tmp_path: Path, configured: str, asked: bool | None, goes: bool
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"[vm_defaults]\n{configured}\n")
    assert find_tooling(["README"], str(config), nat=asked) is None
    if goes:
        tooling = find_tooling(["mise.toml"], str(config), nat=asked)
        assert tooling is not None
        assert (tooling.files, tooling.url, tooling.sha256) == (("mise.toml",), "", "")
        return
    with pytest.raises(BangerError, match=r"tools \(mise\.toml\) .* no NAT") as caught:
        find_tooling(["mise.toml"], str(config), nat=asked)
    assert caught.value.code is ErrorCode.WRONG_STATE
    assert "--nat" in (caught.value.hint or "")
    assert "--no-bootstrap" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("machine", "arch"), [("x86_64", "x64"), ("aarch64", "arm64"), ("riscv64", "riscv64")]
)
def test_the_url_is_for_this_machine(tmp_path: Path, machine: str, arch: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[tooling]\nmise_url = "https://example.org/{arch}/mise"\n')
    tooling = find_tooling(["mise.toml"], str(config), nat=True, machine=machine)
    assert tooling is not None
    assert tooling.url == f"https://example.org/{arch}/mise"


def test_only_a_person_at_a_shell_does_not_wait() -> None:
    assert in_background(shell=True, terminal=True)
    assert not in_background(shell=True, terminal=False)
    assert not in_background(shell=False, terminal=True)


def test_why_it_failed() -> None:
    session = {"id": "1", "vm_id": "2", "name": "bootstrap", "status": "exited"}
    for more, why in (
        ({"exit_code": 0}, ""),
        ({"exit_code": 3}, "the guest has no mise, and mise_url is not set"),
        ({"exit_code": 9}, "mise ended with 9"),
        ({"status": "failed", "last_error": "the VM ended"}, "the VM ended"),
        ({"status": "running"}, "it is running"),
    ):
        assert why_failed({**session, **more}) == why  # type: ignore[typeddict-item]


def bootstrap(home: Path, *words: str) -> tuple[int, str]:
    """In a home of its own on this host, in place of a guest."""
    repo = home / "repo"
    repo.mkdir(exist_ok=True)
    done = subprocess.run(
        ["/bin/sh", SCRIPT, str(repo), *words],
        env={"HOME": str(home), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""  # all of it is one log
    return done.returncode, done.stdout


def test_the_script_takes_the_guests_own_mise(tmp_path: Path) -> None:
    bin_ = tmp_path / ".local" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "mise").write_text(MISE)
    (bin_ / "mise").chmod(0o755)
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "mise.toml").write_text("")
    repo = f"{tmp_path}/repo"
    status, said = bootstrap(tmp_path, "http://127.0.0.1:1/never-asked")
    assert (status, said.splitlines()) == (
        0,
        [
            f"{repo}: mise trust {repo}/mise.toml",
            f"{repo}: mise install",
            f"{repo}: mise reshim",
            "the tools are there",
        ],
    )


def test_the_script_says_what_is_missing(tmp_path: Path) -> None:
    status, said = bootstrap(tmp_path)
    assert status == 3
    assert "no mise_url" in said
    status, said = bootstrap(tmp_path, "http://127.0.0.1:1/mise")
    assert status == 4
    assert os.listdir(tmp_path / ".local" / "bin") == []


def test_the_script_runs_nothing_of_another_sum(tmp_path: Path) -> None:
    source = tmp_path / "mise"
    source.write_text(MISE)
    good = hashlib.sha256(MISE.encode()).hexdigest()
    status, said = bootstrap(tmp_path, f"file://{source}", good[:-1] + ("0" if good[-1] != "0" else "1"))
    assert status == 5
    assert f"its sha256 is {good}" in said
    assert os.listdir(tmp_path / ".local" / "bin") == []
    status, said = bootstrap(tmp_path, f"file://{source}", good)
    assert status == 0
    assert said.endswith("mise reshim\nthe tools are there\n")


def test_a_command_with_tools_keeps_its_words_and_status(tmp_path: Path) -> None:
    shims = tmp_path / ".local" / "share" / "mise" / "shims"
    shims.mkdir(parents=True)
    (shims / "maker").write_text('#!/bin/sh\nprintf "<%s>" "$@"; exit 7\n')
    (shims / "maker").chmod(0o755)
    argv = with_tools(["maker", "a b", "$HOME", ""])
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, env=env, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (7, b"<a b><$HOME><>")
    missing = subprocess.run(with_tools(["no-such"]), env=env, capture_output=True, timeout=30, check=False)
    assert missing.returncode == 127
