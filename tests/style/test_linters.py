"""The linters and both type checkers, on src, tests and bench, as pyproject.toml sets them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.style import source

HERE = Path(sys.executable).parent


def check(*argv: str) -> None:
    done = subprocess.run(
        [str(HERE / argv[0]), *argv[1:]],
        cwd=source.PROJECT,
        # node (pyright) finds its interpreter, the environment's Python, along PATH
        env={**os.environ, "PATH": f"{HERE}:{os.environ['PATH']}", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout[-20_000:]}{done.stderr[-5_000:]}"


def test_ruff() -> None:
    check("ruff", "check", "--quiet", ".")


def test_ruff_format() -> None:
    check("ruff", "format", "--check", "--quiet", "--diff", ".")


@pytest.mark.slow
def test_mypy() -> None:
    check("mypy", "--no-error-summary")


@pytest.mark.slow
def test_pyright() -> None:
    check("pyright", "--warnings", "--pythonpath", sys.executable)
