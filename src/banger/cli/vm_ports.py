"""`banger vm ports`: who listens in a guest, and where that is from here. Does not touch the VM."""

from __future__ import annotations

import click

from banger.cli.main import say
from banger.cli.options import json_option, vm_argument
from banger.cli.render import print_json, print_table
from banger.client.client import Client
from banger.model.published import endpoint

COLUMNS = ("PROTO", "LISTENS ON", "PORT", "PROCESS", "PID", "ADDRESS", "LINK")


@click.command(
    "ports",
    help="Who listens in a VM's guest. ADDRESS is there where this host gets to it, "
    "LINK where it was asked just now and speaks http or https, PUBLISHED what leads to it from here.",
)
@vm_argument
@json_option
def ports(vm: str, as_json: bool) -> None:
    with Client() as client:
        found = client.ports_vm(vm)
    if as_json:
        print_json(found)
        return
    lead_to: dict[int, list[str]] = {}
    for one in found.get("published", []):
        where = endpoint(one["host_address"], one["host_port"])
        lead_to.setdefault(one["guest_port"], []).append(where + (" (not now)" if one.get("problem") else ""))
    rows = [
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
    ]
    columns: tuple[str, ...] = COLUMNS
    if lead_to:
        columns = (*columns, "PUBLISHED")
        for row, port in zip(rows, found["ports"], strict=True):
            row.append(", ".join(lead_to.get(port["port"], ())) if port["protocol"] == "tcp" else "")
    print_table(columns, rows)
    listening = {port["port"] for port in found["ports"] if port["protocol"] == "tcp"}
    for guest_port, places in lead_to.items():
        if guest_port not in listening and not found.get("left_out"):
            say(f"{', '.join(places)} leads to the guest's port {guest_port}, where nobody listens")
    if left_out := found.get("left_out"):
        say(f"{left_out} more are not shown")
