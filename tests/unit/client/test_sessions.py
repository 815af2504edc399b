"""Sessions of the SDK: what is refused before anybody is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from banger.client.client import Client
from banger.client.errors import DaemonUnreachable
from banger.client.sessions import Sessions
from banger.config.paths import resolve_paths
from banger.errors import BangerError, ErrorCode


@pytest.fixture
def client(tmp_path: Path) -> Client:
    """No daemon is there, and none is started."""
    return Client(resolve_paths({"BANGER_HOME": str(tmp_path)}), autostart=False, version="")


@pytest.mark.parametrize(("command", "env"), [(["\udcff"], {}), (["x"], {"A": "\udcff"})])
def test_what_is_no_text_cannot_be_asked_for(client: Client, command: list[str], env: dict[str, str]) -> None:
    with pytest.raises(BangerError) as caught:
        Sessions(client, "web").start(command, env=env)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_without_a_daemon(client: Client) -> None:
    sessions = Sessions(client, "web")
    for ask in (sessions.list, lambda: sessions.show("x"), lambda: sessions.stop("x")):
        with pytest.raises(DaemonUnreachable):
            ask()
