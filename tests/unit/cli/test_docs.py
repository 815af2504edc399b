"""docs/cli.md and docs/api.md are what their generators print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["cli", "api"])
def test_the_reference_is_fresh(name: str) -> None:
    made = subprocess.run(
        [sys.executable, f"tools/docs/{name}.py"],
        cwd=PROJECT,
        env={"PYTHONPATH": str(PROJECT / "src"), "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert (PROJECT / "docs" / f"{name}.md").read_text() == made, (
        f"stale: python tools/docs/{name}.py > docs/{name}.md"
    )
