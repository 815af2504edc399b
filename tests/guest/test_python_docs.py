"""Every program of docs/python.md runs, in the page's order, and prints what the page says.

On one instance; the page's VM `web` is there from its second program to its last.
"""

from __future__ import annotations

import os
import sys
import tempfile

import pytest

from tests.guest.instance import Instance
from tests.guest.pythonpage import Program, programs

pytestmark = [pytest.mark.guest, pytest.mark.limit(600)]


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.heading)
def test_the_programs_print_what_the_page_says(banger: Instance, program: Program) -> None:
    """As a user's own: with this interpreter, where banger is installed."""
    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf-8") as file:
        file.write(program.code)
        file.flush()
        os.chmod(file.name, 0o644)
        done = banger.run_in_netns(sys.executable, "-X", "dev", "-W", "error", "-I", file.name, timeout_s=240)
    assert done.status == 0, banger.explain(("python", program.heading), done)
    assert done.text == program.prints, banger.explain(("python", program.heading), done)
    assert not done.stderr, done.stderr
