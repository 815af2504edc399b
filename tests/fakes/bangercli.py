"""The real CLI, but the daemon it starts is tests/fakes/fakedaemon.py. BANGER_TEST_CLIENT: its version."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "src")]

import banger  # noqa: E402

if "BANGER_TEST_CLIENT" in os.environ:
    banger.__version__ = os.environ["BANGER_TEST_CLIENT"]

from banger.client import start  # noqa: E402

start.DAEMON_PROGRAM = str(Path(__file__).with_name("fakedaemon.py"))

from banger.cli.main import main  # noqa: E402

main()
