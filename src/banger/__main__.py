"""`python -m banger`: the same as the command `banger`."""

from __future__ import annotations

from banger.cli.main import main

main()
