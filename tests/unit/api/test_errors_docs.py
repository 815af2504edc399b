"""docs/errors.md is what its generator prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from banger.api.errors import MEANINGS

PROJECT = Path(__file__).parents[3]


def test_the_reference_is_fresh() -> None:
    made = subprocess.run(
        [sys.executable, "tools/docs/errors.py"],
        cwd=PROJECT,
        env={"PYTHONPATH": str(PROJECT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert (PROJECT / "docs" / "errors.md").read_text() == made, (
        "stale: python tools/docs/errors.py > docs/errors.md"
    )


def test_every_code_is_explained() -> None:
    for code, info in MEANINGS.items():
        assert info.meaning.endswith("."), code
        assert info.advice.endswith("."), code
        assert "|" not in info.meaning + info.advice, code
