"""`banger vm list` on a live daemon, against an interpreter that does nothing.

Aim: ratio 6; importing click alone is 4 to 4.5.
"""

from __future__ import annotations

import sys

from bench.harness import cpu_ms, rounds, table, timed, wall
from bench.home import BANGER, home

VMS = 3


def run(count: int) -> str:
    with home() as made:
        for number in range(VMS):
            made.run("vm", "create", "--no-start", "--name", f"listed-{number}")
        made.run("vm", "list")
        daemon = made.daemon_pid()
        before = cpu_ms(daemon)
        taken = rounds(
            {
                "python3 -I -c pass": lambda: timed([sys.executable, "-I", "-c", "pass"], made.env),
                "python3 -I -c 'import click'": lambda: timed(
                    [sys.executable, "-I", "-c", "import click"], made.env
                ),
                "banger vm list": lambda: timed([BANGER, "vm", "list"], made.env),
            },
            count,
        )
        asked = len(taken["banger vm list"])
        daemon_ms = (cpu_ms(daemon) - before) / asked
    own = wall(taken["banger vm list"]) - wall(taken["python3 -I -c pass"])
    return (
        table(taken, baseline="python3 -I -c pass")
        + f"\n\nbanger's own: {own:.1f} ms of wall beyond the bare interpreter;"
        + f" about {daemon_ms:.1f} ms of CPU in the daemon for each. {VMS} VMs."
    )
