"""`banger vm publish` and `unpublish`, and `-p` of `run` and `create`: ports of a guest's on this host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from banger.cli.options import Checked, json_option, quiet_option, vm_argument
from banger.cli.progress import Progress
from banger.cli.render import out, print_json
from banger.client.client import Client
from banger.model.published import PortSpec, Which, parse_published, parse_which, spec_text

F = TypeVar("F", bound=Callable[..., Any])

PORT = Checked("[ADDRESS:]PORT:GUESTPORT", parse_published)
WHICH = Checked("[ADDRESS:]PORT[:GUESTPORT]", parse_which)


def publish_option(command: F) -> F:
    return click.option(
        "-p",
        "--publish",
        "published",
        multiple=True,
        type=PORT,
        help="Let this host reach the guest's TCP port: on 127.0.0.1 unless an address is given, on a free "
        "port that is then kept if GUESTPORT stands alone. May be given several times.",
    )(command)


def as_body(ports: Sequence[PortSpec]) -> list[dict[str, Any]]:
    return [port._asdict() for port in ports]


@click.command(
    "publish",
    help="""Publish TCP ports of a VM's guest on this host, at once and whenever it runs.

    \b
    banger vm publish web 8080:80            127.0.0.1:8080 leads to port 80 of the guest
    banger vm publish web 0.0.0.0:8080:80    from everywhere: every IPv4 address of this host
    banger vm publish web 80                 a free port is chosen, and kept

    Needs no NAT. Prints what the VM publishes now.
    """,
)
@vm_argument
@click.argument("ports", metavar="[ADDRESS:]PORT:GUESTPORT...", nargs=-1, required=True, type=PORT)
@json_option
@quiet_option
def publish(vm: str, ports: tuple[PortSpec, ...], as_json: bool) -> None:
    with Client() as client, Progress() as progress:
        record = client.publish_ports(vm, as_body(ports)).wait(progress)
    _print(record, as_json=as_json)


@click.command(
    "unpublish",
    help="""Take published ports of a VM's back; connections through them end.

    \b
    banger vm unpublish web 8080             a port alone is this host's
    banger vm unpublish web 0.0.0.0:8080     only the one on that address
    banger vm unpublish web --all

    Prints what the VM publishes still.
    """,
)
@vm_argument
@click.argument("ports", metavar="[ADDRESS:]PORT[:GUESTPORT]...", nargs=-1, type=WHICH)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@json_option
@quiet_option
def unpublish(vm: str, ports: tuple[Which, ...], everything: bool, as_json: bool) -> None:
    if bool(ports) == everything:
        raise click.UsageError("give the ports, or --all")
    with Client() as client, Progress() as progress:
        asked = [port._asdict() for port in ports]
        record = client.unpublish_ports(vm, asked, everything=everything).wait(progress)
    _print(record, as_json=as_json)


def _print(record: dict[str, Any], *, as_json: bool) -> None:
    """What is published now, a line each, as `publish` takes it."""
    if as_json:
        print_json(record)
        return
    for port in record["spec"]["published"]:
        out(spec_text(PortSpec(**port)))
