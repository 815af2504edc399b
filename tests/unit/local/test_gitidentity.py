"""Who the user is to git, asked of a real git."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.local import gitidentity
from banger.local.account import Account, as_user, this_account
from banger.local.gitidentity import request_owner
from tests.capabilities import require

UID = os.geteuid()


def account(home: Path, **env: str) -> Account:
    return this_account({"HOME": str(home), "PATH": os.environ["PATH"], **env}, euid=1000)


def test_their_own_configuration_is_asked(tmp_path: Path) -> None:
    (tmp_path / ".gitconfig").write_text('[user]\n\tname = Änn "the" \\\\\n\temail = a@example.org\n')
    # the quotes are git's own, and only group
    assert request_owner(account(tmp_path)) == (
        {"uid": UID, "git_name": "Änn the \\", "git_email": "a@example.org"},
        (),
    )


def test_includes_and_the_other_places_count(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("[user]\n\temail = more@example.org\n")
    (tmp_path / ".config/git").mkdir(parents=True)
    place = tmp_path / ".config/git/config"
    place.write_text("[user]\n\temail = first@example.org\n[include]\n\tpath = ~/more\n")
    assert request_owner(account(tmp_path)) == ({"uid": UID, "git_email": "more@example.org"}, ())
    place.rename(tmp_path / "elsewhere")
    assert request_owner(account(tmp_path)) == ({"uid": UID}, ())
    found = request_owner(account(tmp_path, GIT_CONFIG_GLOBAL=str(tmp_path / "elsewhere")))
    assert found == ({"uid": UID, "git_email": "more@example.org"}, ())


def test_a_repository_that_the_environment_names_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / ".gitconfig").write_text("[user]\n\tname = Ann\n")
    (tmp_path / "broken").mkdir()
    env = {"GIT_DIR": str(tmp_path / "broken"), "GIT_TRACE": str(tmp_path / "trace")}
    assert request_owner(account(tmp_path, **env)) == ({"uid": UID, "git_name": "Ann"}, ())
    assert not (tmp_path / "trace").exists()


def test_without_a_configuration_git_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gitidentity, "_ask", lambda *_: pytest.fail("git was run"))
    assert request_owner(account(tmp_path)) == ({"uid": UID}, ())
    assert request_owner(account(tmp_path, GIT_CONFIG_GLOBAL="/dev/null/x")) == ({"uid": UID}, ())


def test_a_broken_configuration_is_said(tmp_path: Path) -> None:
    (tmp_path / ".gitconfig").write_text("[user\n")
    owner, notes = request_owner(account(tmp_path))
    assert owner == {"uid": UID}
    assert len(notes) == 1
    assert notes[0].startswith("the guest gets no git identity: git exited with ")


def test_a_missing_git_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitconfig").touch()

    def missing(*_: object) -> dict[str, str]:
        raise BangerError(ErrorCode.HOST_UNSUITABLE, "git is not installed")

    monkeypatch.setattr(gitidentity, "_ask", missing)
    assert request_owner(account(tmp_path))[1] == ("the guest gets no git identity: git is not installed",)


@pytest.mark.parametrize("name", ["x" * 1001, "a\\nb", "\x1b[0m"])
def test_a_name_that_is_none_is_left_out_and_said(tmp_path: Path, name: str) -> None:
    (tmp_path / ".gitconfig").write_text(f'[user]\n\tname = "{name}"\n\temail = a@example.org\n')
    owner, notes = request_owner(account(tmp_path))
    assert owner == {"uid": UID, "git_email": "a@example.org"}
    assert notes == ("git's user.name is not a name that a guest can be given",)


@require("root")
def test_under_sudo_it_is_the_callers(tmp_path: Path) -> None:
    """An include that only root may read is not read for them."""
    for folder in (tmp_path, *tmp_path.parents):
        if os.stat(folder).st_uid == 0 and folder not in (Path("/"), Path("/tmp")):
            folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / ".gitconfig").write_text("[user]\n\tname = Ann\n[include]\n\tpath = ~/roots\n")
    (tmp_path / "roots").write_text("[user]\n\temail = secret@example.org\n")
    (tmp_path / "roots").chmod(0o600)
    callers = Account(
        home=str(tmp_path), env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, uid=1, gid=1
    )
    owner, notes = request_owner(callers)
    assert owner["uid"] == 1
    assert "git_email" not in owner
    assert len(notes) == ("git_name" not in owner)
    env = {"HOME": "/root", "SUDO_UID": "1", "PATH": "/bin"}
    assert as_user(["git"], this_account(env, euid=0))[:2] == ["setpriv", "--reuid=1"]
    assert as_user(["git"], account(tmp_path)) == ["git"]
