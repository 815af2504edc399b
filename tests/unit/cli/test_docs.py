"""docs/cli.md, docs/api.md and the manual pages are what their generators print, and man shows them."""

from __future__ import annotations

import importlib.util
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


PAGES = sorted((PROJECT / "docs" / "man").glob("*.1"))


def test_the_manual_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "tools/docs/man.py", "--check"],
        cwd=PROJECT,
        env={"PYTHONPATH": str(PROJECT / "src"), "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == ([], ""), "stale: python tools/docs/man.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_man_renders_each_page_without_a_warning(page: Path) -> None:
    shown = subprocess.run(
        ["man", "--warnings", "--local-file", str(page)],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANPAGER": "cat"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stderr == ""
    assert f"{page.stem.upper()}(1)" in shown.stdout
    assert "banger -- " not in shown.stdout
    assert f"\n       {page.stem.replace('-', ' ')} " in shown.stdout


def test_what_is_special_to_roff_is_shown_as_it_is() -> None:
    spec = importlib.util.spec_from_file_location("man", PROJECT / "tools" / "docs" / "man.py")
    assert spec is not None
    assert spec.loader is not None
    man = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(man)
    odd = ".SH no\n'tis --all `a\\nb' ~/x ^ \"q\" team/app@sha256:…"
    shown = subprocess.run(
        ["man", "--warnings", "--local-file", "-"],
        input=f".TH X 1\n.SH NAME\nx \\- y\n.nf\n{man.escape(odd)}\n",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANPAGER": "cat"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stderr == ""
    assert [line.strip() for line in shown.stdout.splitlines() if line.strip()][3:5] == odd.split("\n")
