"""A client of another instance starts that instance's daemon, whatever the environment says."""

from __future__ import annotations

import pytest

from banger.client.start import _environment
from banger.config.paths import resolve_paths


def test_the_daemon_gets_the_clients_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BANGER_HOME", "/somewhere/else")
    assert _environment(resolve_paths({"BANGER_HOME": "/a/home"}))["BANGER_HOME"] == "/a/home"
    assert "BANGER_HOME" not in _environment(resolve_paths({}, uid=0))
