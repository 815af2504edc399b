"""The real agent as an ordinary process: git "in a guest" that is this host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.guestagent import end, serve_agent
from tests.unit.agent.conftest import agent_program as agent_program  # the sanitized agent


@pytest.fixture
def vm_dir(agent_program: Path, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "vm"
    folder.mkdir()
    running = serve_agent(str(agent_program), folder)
    yield folder
    end(running)
