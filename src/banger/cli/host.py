"""`banger host …`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from banger.cli.lazy import LazyGroup
from banger.cli.main import say
from banger.cli.options import json_option
from banger.cli.render import print_json, print_table
from banger.client.client import Client
from banger.model.references import SHOWN_ID_LENGTH

if TYPE_CHECKING:
    from banger.client import shapes

host = LazyGroup(
    "host",
    help="What banger has made on this host.",
    lazy={
        "audit": ("banger.cli.host:audit", "Find what banger left on this host and nothing explains."),
    },
)


def _row(finding: shapes.Finding) -> list[str]:
    failure = finding.get("failure")
    if finding.get("fixed"):
        outcome = "removed"
    elif failure:
        outcome = f"not removed: {failure}"
    else:
        outcome = "--fix removes it" if finding.get("fixable") else "left alone"
    vm_id = finding.get("vm_id", "")[:SHOWN_ID_LENGTH]
    return [finding["kind"], finding["name"], vm_id, finding["problem"], outcome]


@click.command(
    "audit",
    help="""Compare every object on this host that banger made, or that carries its names, with what it should
    be: taps, bridge ports, nft tables, loops, device-mapper targets, mounts, processes, sockets, files.

    Normally nothing is unexplained. Otherwise a table is printed and the exit status is 1. --fix removes
    what carries this instance's mark, folders of VMs that are not known any more included; what only has
    banger's names is somebody else's and stays. The exit status is 1 then when something is left.
    """,
)
@click.option("--fix", is_flag=True, help="Remove what carries this instance's mark.")
@json_option
def audit(fix: bool, as_json: bool) -> int:
    with Client() as client:
        findings = client.audit(fix=fix)
    if as_json:
        print_json(findings)
    elif findings:
        print_table(("KIND", "NAME", "VM", "PROBLEM", "OUTCOME"), [_row(finding) for finding in findings])
    else:
        say("nothing unexplained")
    return 1 if any(not finding.get("fixed") for finding in findings) else 0
