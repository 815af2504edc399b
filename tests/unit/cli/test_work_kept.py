"""What `vm delete`, `vm prune` and the client say and ask of the work that is kept."""

from __future__ import annotations

import pytest

from banger.client.client import Client
from banger.config.paths import resolve_paths
from banger.errors import BangerError, ErrorCode
from tests.unit.cli.conftest import Instance
from tests.unit.daemon.test_workspaces import BROUGHT, COMMIT


def client_of(banger: Instance) -> Client:
    return Client(resolve_paths({"BANGER_HOME": str(banger.home)}), autostart=False)


def made(banger: Instance, name: str) -> None:
    """A VM with a workspace; the fake finds work in every one."""
    banger("vm", "create", "--name", name)
    with client_of(banger) as client:
        client.set_workspace(name, **BROUGHT)


def kept(banger: Instance) -> list[str]:
    with client_of(banger) as client:
        return [work["vm_name"] for work in client.list_work()]


@pytest.fixture(autouse=True)
def nothing_left(banger: Instance) -> None:
    """Of the test before."""
    banger("daemon", "start")
    with client_of(banger) as client:
        for work in client.list_work():
            client.remove_work(work["vm_id"])


def test_a_delete_says_how_to_get_what_it_kept(banger: Instance) -> None:
    made(banger, "going")
    deleted = banger("vm", "delete", "going")
    assert deleted.stdout == b"going\n"
    assert deleted.stderr.decode().splitlines() == [
        "keeping the work in going",
        "work of going is kept: banger workspace pull going",
    ]
    assert kept(banger) == ["going"]


def test_quiet_is_quiet_about_work_too(banger: Instance) -> None:
    made(banger, "silent")
    assert banger("vm", "delete", "--quiet", "silent").stderr == b""
    assert kept(banger) == ["silent"]


def test_work_is_discarded_when_that_is_said(banger: Instance) -> None:
    for name in ("dear", "cheap"):
        made(banger, name)
    assert banger("vm", "delete", "--discard-work", "cheap").stderr == b""
    banger("vm", "stop", "dear")
    assert b"pull dear" in banger("vm", "prune", "-f").stderr
    made(banger, "cheaper")
    banger("vm", "stop", "cheaper")
    assert b"pull" not in banger("vm", "prune", "-f", "--discard-work").stderr
    assert "dear" in kept(banger)


def test_the_client_asks_for_everything_that_is_kept(banger: Instance) -> None:
    made(banger, "asked")
    with client_of(banger) as client:
        work = client.keep_work("asked", ignored=True).wait()
        assert (work["vm_name"], work["vm_exists"]) == ("asked", True)
        assert client.show_work("asked")["workspace"].get("repo_root") == "/home/me/app"
        assert b"".join(client.work_pack("asked", [COMMIT])) == b"PACK" + COMMIT.encode()
        assert b"".join(client.work_patch("asked")) == b"diff from what was brought\n"
        assert b"".join(client.work_patch("asked", base=COMMIT)) == f"diff from {COMMIT}\n".encode()
        with pytest.raises(BangerError) as caught:
            client.remove_work("asked")
        assert caught.value.code is ErrorCode.IN_USE
        with pytest.raises(BangerError) as caught:
            b"".join(client.work_pack("asked", ["f" * 40]))
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
        pieces = client.work_patch("asked", base="0" * 40)
        with pytest.raises(BangerError) as caught:
            b"".join(pieces)
        assert caught.value.code is ErrorCode.DAEMON_UNREACHABLE
        client.delete_vm("asked").wait()
        assert client.remove_work("asked")["vm_name"] == "asked"
