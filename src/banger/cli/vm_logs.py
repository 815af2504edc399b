"""`banger vm logs`: raw into a file or pipe, escaped on a terminal."""

from __future__ import annotations

import sys

import click

from banger.cli.escape import LogEscaper
from banger.cli.options import vm_argument
from banger.cli.render import is_terminal
from banger.client.client import Client


@click.command("logs", help="What the VM's console said, or its monitor.")
@vm_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what is said from now on.")
@click.option("-n", "--tail", type=click.IntRange(min=0, max=100_000), help="Only the last so many lines.")
@click.option("--source", type=click.Choice(["console", "monitor"]), default="console", show_default=True)
def logs(vm: str, follow: bool, tail: int | None, source: str) -> None:
    escaper = LogEscaper() if is_terminal(1) else None
    with Client() as client:
        for piece in client.logs(vm, source=source, follow=follow, tail=tail):
            if escaper is None:
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
            else:
                sys.stdout.write(escaper.feed(piece))
                sys.stdout.flush()
    if escaper is not None:
        sys.stdout.write(escaper.feed(b"", final=True))
