"""docs/config.md is what its generator prints, and says something about every key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from banger.config.keys import TABLES, TOP

PROJECT = Path(__file__).parents[3]


def test_the_reference_is_fresh() -> None:
    made = subprocess.run(
        [sys.executable, "tools/docs/config.py"],
        cwd=PROJECT,
        env={"PYTHONPATH": str(PROJECT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert (PROJECT / "docs" / "config.md").read_text() == made, (
        "stale: python tools/docs/config.py > docs/config.md"
    )


def test_every_key_is_explained() -> None:
    for key in [*TOP, *(key for table in TABLES for key in table.keys)]:
        assert key.doc.endswith("."), key.name
        assert key.kind, key.name
        assert key.default, key.name
        assert "|" not in key.doc + key.kind + key.default, key.name
