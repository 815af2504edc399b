"""`banger vm cp`: files and folders between host and guest, with docker cp's words."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import click
from click.shell_completion import CompletionItem

from banger.cli import state
from banger.cli.escape import safe
from banger.cli.main import say
from banger.cli.options import complete_vm
from banger.client.client import Client

if TYPE_CHECKING:
    from banger.client.copy import Copied

SHOWN_EVERY_S = 0.2
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Place(NamedTuple):
    """vm: "" for the host."""

    vm: str
    path: str


def parse_place(word: str) -> Place:
    """`VM:path`, or a path of the host's: with a / before the colon it is one (`./a:b`)."""
    vm, colon, path = word.partition(":")
    return Place(vm, path) if colon and vm and "/" not in vm and not vm.startswith(".") else Place("", word)


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    if ":" in incomplete:
        return []
    names = [] if "/" in incomplete else complete_vm(ctx, param, incomplete)
    return [CompletionItem(f"{item.value}:") for item in names] + [CompletionItem(incomplete, type="file")]


class Meter:
    """Bytes and rate on stderr: one live line on a terminal, and a last one anywhere; none when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        from banger.cli.progress import Progress

        self._quiet = quiet
        self._progress = Progress()
        self._began = self._shown = time.monotonic()
        self._bytes = 0

    def __call__(self, count: int) -> None:
        self._bytes = count
        now = time.monotonic()
        if now - self._shown >= SHOWN_EVERY_S and not self._quiet:
            self._shown = now
            self._progress.live(f"{amount(count)}  {self._rate(now)}")

    def _rate(self, now: float) -> str:
        return f"{amount(self._bytes / max(now - self._began, 1e-3))}/s"

    def close(self) -> None:
        self._progress.close()

    def done(self, copied: Copied) -> None:
        now = time.monotonic()
        self.close()
        for note in copied.notes:
            say(f"banger: warning: {safe(note)}")
        if not self._quiet:
            entries = "1 entry" if copied.entries == 1 else f"{copied.entries} entries"
            took = now - self._began
            self._progress.line(
                f"copied {entries}, {amount(copied.bytes)} in {took:.1f} s, {self._rate(now)}", dim=True
            )


def amount(count: float) -> str:
    """`1.5 MiB`."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


@click.command(
    help="""Copy files and folders between the host and a running VM.

    One of SRC and DST is VM:PATH; a path there that does not begin with / is root's home's. Where DST is
    a folder, the copy goes into it under its own name; SRC with /. behind it means what is in the folder.
    With - as the other side it is a tar archive on stdin (unpacked into the folder) or on stdout.

    Out of a guest, files are yours, and set-id bits, devices and pipes are left out, but with -a as root.

    \b
    banger vm cp ./site web:/var/www
    banger vm cp web:/var/log .
    banger vm cp web:/etc - | tar t
    tar c . | banger vm cp - web:/srv
    """
)
@click.argument("source", metavar="SRC", shell_complete=_complete)
@click.argument("destination", metavar="DST", shell_complete=_complete)
@click.option("-a", "--archive", "owners", is_flag=True, help="Keep owners and set-id bits too.")
@click.option("-L", "--follow-link", "follow", is_flag=True, help="Where SRC is a link: what it leads to.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def cp(source: str, destination: str, owners: bool, follow: bool, quiet: bool) -> int:
    ctx = click.get_current_context()
    here, there = parse_place(source), parse_place(destination)
    if bool(here.vm) == bool(there.vm):
        both = "both are" if here.vm else "neither is"
        raise click.UsageError(f"one of SRC and DST is VM:PATH, {both} here", ctx)
    if (source == "-" and os.isatty(0)) or (destination == "-" and os.isatty(1)):
        raise click.UsageError("- is a tar archive, and there is a terminal in its place", ctx)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    meter = Meter(quiet=quiet or state.quiet)
    with Client() as client:
        try:
            copied = _copy(client, here, there, owners=owners, follow=follow, meter=meter)
        except BrokenPipeError:  # whoever read the archive has had enough, which is not click's to say
            return 128 + signal.SIGPIPE
        finally:
            meter.close()
    meter.done(copied)
    return 0


def _copy(client: Client, here: Place, there: Place, *, owners: bool, follow: bool, meter: Meter) -> Copied:
    from banger.client import copy

    if there.vm:
        if here.path == "-":
            return copy.unpack_in(client, there.vm, 0, there.path, owners=owners, tick=meter)
        return copy.copy_in(client, there.vm, here.path, there.path, owners=owners, follow=follow, tick=meter)
    if there.path == "-":
        return copy.pack_out(client, here.vm, here.path, 1, follow=follow, tick=meter)
    return copy.copy_out(client, here.vm, here.path, there.path, owners=owners, follow=follow, tick=meter)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Cleaning up on the way out, as Ctrl-C does."""
    raise SystemExit(128 + number)
