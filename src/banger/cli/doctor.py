"""`banger doctor`; the checks are local/doctor.py's."""

from __future__ import annotations

import click

from banger.cli.options import json_option
from banger.cli.render import colour, out, print_json

COLOURS = {"PASS": "32", "WARN": "33", "FAIL": "31"}


@click.command(
    "doctor",
    help="""Check whether this host can run VMs: PASS, WARN or FAIL, and what to do.

    Needs no daemon and changes nothing. The exit status is 1 when a check says FAIL.
    """,
)
@json_option
def doctor(as_json: bool) -> int:
    from banger.cli.escape import safe
    from banger.local.doctor import checks, to_json, worst

    found = checks()
    if as_json:
        print_json([to_json(check) for check in found])
    else:
        width = max(len(check.name) for check in found)
        for check in found:
            status = str(check.status)
            out(f"{colour(status, COLOURS[status])}  {check.name.ljust(width)}  {safe(check.message)}")
            if check.hint:
                out(f"      {' ' * width}  {safe(check.hint)}")
    return 1 if worst(found) == "FAIL" else 0
