"""`banger kernel …`."""

from __future__ import annotations

import click

from banger.cli.lazy import LazyGroup
from banger.cli.options import json_option
from banger.cli.render import age, print_json, print_table
from banger.client.client import Client

kernel = LazyGroup(
    "kernel",
    help="The kernels that VMs boot.",
    lazy={"list": ("banger.cli.kernel:list_command", "List the kernels on this host.")},
)


@click.command("list", help="List the kernels on this host.")
@json_option
def list_command(as_json: bool) -> None:
    with Client() as client:
        kernels = client.list_kernels()
    if as_json:
        print_json(kernels)
        return
    rows = [
        [
            one["name"],
            one["distro"],
            one["arch"],
            one["kernel_version"],
            age(one["imported_at"]),
        ]
        for one in kernels
    ]
    print_table(("NAME", "DISTRO", "ARCH", "VERSION", "IMPORTED"), rows)
