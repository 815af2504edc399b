"""`banger kernel …`."""

from __future__ import annotations

import os
from typing import Any

import click

from banger.cli.lazy import LazyGroup
from banger.cli.options import (
    NAME,
    complete_kernel,
    complete_pullable_kernel,
    json_option,
    quiet_option,
)
from banger.cli.progress import Progress
from banger.cli.render import age, out, print_fields, print_json, print_table
from banger.cli.vm_life import complain
from banger.client.client import Client, Operation
from banger.errors import BangerError

kernel = LazyGroup(
    "kernel",
    help="The kernels that VMs boot.",
    lazy={
        "list": ("banger.cli.kernel:list_command", "List the kernels on this host, or those to be had."),
        "show": ("banger.cli.kernel:show", "All about one kernel."),
        "pull": ("banger.cli.kernel:pull", "Get a kernel of the catalog."),
        "import": ("banger.cli.kernel:import_command", "Take in a kernel of your own."),
        "rm": ("banger.cli.kernel:remove", "Remove kernels that no image was made with."),
    },
)


@click.command(
    "list",
    help="""List the kernels on this host, or with --available those of the catalog.

    \b
    banger kernel list
    banger kernel list --available       what `kernel pull NAME` gets, and which of it is here
    """,
)
@click.option("--available", is_flag=True, help="Those of the catalog.")
@json_option
def list_command(available: bool, as_json: bool) -> None:
    with Client() as client:
        if available:
            _print_catalog(client, as_json)
            return
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


def _print_catalog(client: Client, as_json: bool) -> None:
    entries = client.kernel_catalog()
    if as_json:
        print_json(entries)
        return
    rows = [[one["name"], one["distro"], one["suite"], "yes" if one["here"] else "no"] for one in entries]
    print_table(("NAME", "DISTRO", "SUITE", "HERE"), rows)


@click.command("show", help="All about one kernel.")
@click.argument("name", metavar="KERNEL", shell_complete=complete_kernel)
@json_option
def show(name: str, as_json: bool) -> None:
    with Client() as client:
        record = client.show_kernel(name)
    if as_json:
        print_json(record)
    else:
        print_fields([(key.replace("_", " "), str(value)) for key, value in record.items()])


@click.command(
    "pull",
    help="""Get a kernel of the catalog, from its distribution's archive. One that is here stays.

    \b
    banger kernel pull debian-trixie
    banger image pull debian-bookworm --name new --kernel debian-trixie
    """,
)
@click.argument("name", metavar="KERNEL", shell_complete=complete_pullable_kernel)
@json_option
@quiet_option
def pull(name: str, as_json: bool) -> None:
    with Client() as client:
        _finish(client.pull_kernel(name), as_json)


@click.command(
    "import",
    help="""Take in a kernel of your own, from a folder with

    \b
    vmlinux or bzImage    the kernel
    modules/              its modules, as in /lib/modules/VERSION; without them all must be built in
    initrd.img            its own initrd, if it needs one

    \b
    banger kernel import mine --from ./build
    banger image pull alpine --name try --kernel mine
    """,
)
@click.argument("name", type=NAME)
@click.option("--from", "folder", required=True, type=click.Path(file_okay=False), help="The folder.")
@json_option
@quiet_option
def import_command(name: str, folder: str, as_json: bool) -> None:
    with Client() as client:
        _finish(client.import_kernel(name, os.path.abspath(folder)), as_json)


def _finish(operation: Operation, as_json: bool) -> None:
    with Progress() as progress:
        record: dict[str, Any] = operation.wait(progress)
    if as_json:
        print_json(record)
    else:
        out(record["name"])


@click.command("rm", help="Remove kernels. Those that images were made with are kept, and the images named.")
@click.argument("names", metavar="KERNEL...", nargs=-1, required=True, shell_complete=complete_kernel)
def remove(names: tuple[str, ...]) -> int:
    failed = 0
    with Client() as client:
        for name in names:
            try:
                removed = client.remove_kernel(name)
            except BangerError as error:
                complain(error)
                failed = 1
            else:
                out(removed["name"])
    return failed
