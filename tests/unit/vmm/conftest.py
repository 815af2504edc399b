"""Launchers that clean up after themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.installed import DirectLauncher


@pytest.fixture
def launcher() -> Iterator[DirectLauncher]:
    launcher = DirectLauncher()
    yield launcher
    launcher.close()
