"""`banger vm ports`: who listens in a guest, and where that is from here. Does not touch the VM."""

from __future__ import annotations

import click

from banger.cli.main import say
from banger.cli.options import json_option, vm_argument
from banger.cli.render import print_json, print_table
from banger.client.client import Client

COLUMNS = ("PROTO", "LISTENS ON", "PORT", "PROCESS", "PID", "ADDRESS", "LINK")


@click.command(
    "ports",
    help="Who listens in a VM's guest. ADDRESS is there where this host gets to it, "
    "LINK where it was asked just now and speaks http or https.",
)
@vm_argument
@json_option
def ports(vm: str, as_json: bool) -> None:
    with Client() as client:
        found = client.ports_vm(vm)
    if as_json:
        print_json(found)
        return
    print_table(
        COLUMNS,
        [
            [
                port["protocol"],
                port["address"],
                str(port["port"]),
                port.get("process", ""),
                str(port.get("pid", "")),
                port.get("endpoint", ""),
                port.get("url", ""),
            ]
            for port in found["ports"]
        ],
    )
    if left_out := found.get("left_out"):
        say(f"{left_out} more are not shown")
