"""The user's credential files and helper programs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from banger.image.oci.auth import Credential
from banger.image.oci.reference import parse_reference
from banger.local.account import Account, this_account
from banger.local.credentials import Found, auth_files, find_credentials
from tests.capabilities import require

pytestmark = pytest.mark.anyio

APP = parse_reference("example.org/team/app")
HELPER = """#!/bin/sh
[ "$1" = get ] || exit 9
read -r server || true
echo "$server as $HOME $(id -u)" >> "$HOME/asked"
case $server in
*nothing*) echo "credentials not found in native keychain"; exit 1 ;;
*broken*) echo "secret words" ; exit 3 ;;
*garbage*) echo "secret words" ;;
*) printf '{"ServerURL":"%s","Username":"helped","Secret":"s3cret"}' "$server" ;;
esac
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for folder in ("home/.docker", "home/.config/containers", "run/containers", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    program = tmp_path / "bin" / "docker-credential-test"
    program.write_text(HELPER)
    program.chmod(0o755)
    return tmp_path / "home"


@pytest.fixture
def account(home: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    monkeypatch.setenv("PATH", f"{home.parent}/bin:{os.environ['PATH']}")
    env = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home.parent / "run"), "PATH": os.environ["PATH"]}
    return this_account(env, euid=1000)


def write(path: Path, **document: Any) -> None:
    path.write_text(json.dumps(document))


def login(name: str) -> dict[str, dict[str, str]]:
    return {"example.org": {"username": name, "password": "x"}}


async def who(account: Account) -> str:
    found = await find_credentials(APP, account=account)
    return found.credentials.get("example.org", Credential()).username


async def test_the_order_of_files(home: Path, account: Account) -> None:
    assert await who(account) == ""
    write(home / ".config/containers/auth.json", auths=login("podman"))
    assert await who(account) == "podman"
    write(home.parent / "run/containers/auth.json", auths=login("podman-session"))
    assert await who(account) == "podman-session"
    write(home / ".docker/config.json", auths={"other.example.org": {}})
    assert await who(account) == "podman-session", "a file that has nothing decides nothing"
    write(home / ".docker/config.json", auths=login("docker"))
    assert await who(account) == "docker"
    env = {**account.env, "DOCKER_CONFIG": str(home / "elsewhere")}
    assert await who(this_account(env, euid=1000)) == "podman-session"
    (home / "elsewhere").mkdir()
    write(home / "elsewhere/config.json", auths=login("docker-config"))
    assert await who(this_account(env, euid=1000)) == "docker-config"
    env["REGISTRY_AUTH_FILE"] = str(home / "named.json")
    write(home / "named.json", auths=login("named"))
    assert await who(this_account(env, euid=1000)) == "named"


async def test_a_helper_is_asked_as_docker_asks(home: Path, account: Account) -> None:
    write(home / ".docker/config.json", auths=login("file"), credHelpers={"example.org": "test"})
    found = await find_credentials(APP, account=account, mirrors=["mirror.example.org"])
    assert found == Found(
        credentials={"example.org": Credential(username="helped", password="s3cret")}, notes=()
    )
    assert (home / "asked").read_text() == f"example.org as {home} {os.getuid()}\n"
    write(home / ".docker/config.json", auths=login("file"), credsStore="test")
    found = await find_credentials(APP, account=account, mirrors=["mirror.example.org"])
    assert set(found.credentials) == {"example.org", "mirror.example.org"}


@pytest.mark.parametrize(
    ("registry", "note"),
    [
        ("nothing.example.org", ""),
        ("broken.example.org", "fails with status 3"),
        ("garbage.example.org", "no credential"),
    ],
)
async def test_helpers_that_have_nothing(home: Path, account: Account, registry: str, note: str) -> None:
    write(home / ".docker/config.json", credsStore="test")
    found = await find_credentials(parse_reference(f"{registry}/app"), account=account)
    assert found.credentials == {}
    assert (note in found.notes[0]) if note else not found.notes
    assert not any("secret" in line for line in found.notes)


async def test_a_helper_that_is_not_there_is_said(home: Path, account: Account) -> None:
    write(home / ".docker/config.json", credsStore="missing")
    write(home / ".config/containers/auth.json", auths=login("podman"))
    found = await find_credentials(APP, account=account)
    assert found.credentials["example.org"].username == "podman"
    assert "docker-credential-missing" in found.notes[0]


async def test_a_broken_file_is_said_and_passed_over(home: Path, account: Account) -> None:
    (home / ".docker/config.json").write_text("not { json, but secret")
    (home / ".config/containers/auth.json").mkdir()
    write(home.parent / "run/containers/auth.json", auths=login("podman"))
    found = await find_credentials(APP, account=account)
    assert found.credentials["example.org"].username == "podman"
    assert len(found.notes) == 2
    assert not any("secret" in line for line in found.notes)


def test_under_sudo_it_is_the_callers() -> None:
    env = {"SUDO_UID": "1", "HOME": "/root", "DOCKER_CONFIG": "/root/.docker", "PATH": "/bin"}
    account = this_account(env, euid=0)
    assert account.uid == 1
    assert account.home not in ("/root", "")
    assert not any(str(path).startswith("/root") for path in auth_files(account))
    assert this_account(env, euid=1000).uid is None
    assert this_account({**env, "SUDO_UID": "0"}, euid=0).uid is None
    assert this_account({**env, "SUDO_UID": "no"}, euid=0).uid is None


def test_relative_homes_are_not_used() -> None:
    assert auth_files(this_account({"HOME": "", "XDG_CONFIG_HOME": "x"}, euid=1000)) == []


@require("root")
async def test_a_helper_runs_as_the_caller(home: Path, account: Account) -> None:
    for folder in (home, *home.parents):
        if os.stat(folder).st_uid == 0 and folder not in (Path("/"), Path("/tmp")):
            folder.chmod(folder.stat().st_mode | 0o055)
    os.chown(home, 1, 1)
    write(home / ".docker/config.json", credsStore="test")
    callers = Account(home=str(home), env=account.env, uid=1, gid=1)
    found = await find_credentials(APP, account=callers)
    assert found.credentials["example.org"].username == "helped"
    assert (home / "asked").read_text().split()[-1] == "1"
