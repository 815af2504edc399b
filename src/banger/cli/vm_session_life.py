"""`banger vm session signal`, `stop` and `rm`: several sessions of one VM at a time.

References are resolved against one listing, duplicates dropped. They run at the same time, each with a
client of its own; what went well is printed in the order given; exit 1 if any failed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from banger.cli.options import SIGNALS, complete_words, json_option
from banger.cli.render import out, print_json
from banger.cli.vm_life import complain
from banger.cli.vm_session import sessions_argument, vm_of_session
from banger.client.client import Client
from banger.client.sessions import Sessions
from banger.errors import BangerError
from banger.model.references import resolve
from banger.model.sessions import MAX_STOP_TIMEOUT_S, STOP_TIMEOUT_S, signal_number

if TYPE_CHECKING:
    from banger.client import shapes

    Work = Callable[[Sessions, str], shapes.Session]

AT_ONCE = 16
"""Requests under way at a time: each is a connection to the daemon and one into the guest."""


def on_each(vm: str, references: tuple[str, ...], work: Work, *, as_json: bool) -> int:
    """The exit status."""
    with Client() as client:
        pairs = [(known["id"], known["name"]) for known in Sessions(client, vm).list()]
        vm_id = client.show_vm(vm)["id"]
    failed = False
    found: dict[str, str] = {}
    names = dict(pairs)
    for reference in references:
        try:
            session_id = resolve(reference, pairs, what="session")
            found[session_id] = names[session_id]
        except BangerError as error:
            failed = True
            complain(error)
    done: dict[str, shapes.Session] = {}
    for session_id, outcome in _all(vm_id, list(found), work):
        if isinstance(outcome, BangerError):
            failed = True
            complain(outcome)
        elif as_json:
            done[session_id] = outcome
        else:
            out(found[session_id])
    if as_json:
        print_json(list(done.values()))
    return 1 if failed else 0


def _all(vm: str, ids: list[str], work: Work) -> list[tuple[str, shapes.Session | BangerError]]:
    """In the order of ids."""
    outcomes: dict[str, shapes.Session | BangerError] = {}
    waiting = list(ids)

    def run() -> None:
        with Client() as client:
            while waiting:
                try:
                    session_id = waiting.pop(0)
                except IndexError:
                    return
                try:
                    outcomes[session_id] = work(Sessions(client, vm), session_id)
                except BangerError as error:
                    outcomes[session_id] = error

    threads = [threading.Thread(target=run, daemon=True) for _ in ids[:AT_ONCE]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [(session_id, outcomes[session_id]) for session_id in ids]


@click.command("signal", help="Send a signal to sessions' commands, and all that they started.")
@vm_of_session
@sessions_argument
@click.option(
    "-s",
    "--signal",
    default="TERM",
    show_default=True,
    shell_complete=complete_words(*SIGNALS, "STOP", "CONT"),
    help="A name, or a number from 1 to 64.",
)
@json_option
def signal(vm: str, references: tuple[str, ...], signal: str, as_json: bool) -> int:
    signal_number(signal)
    return on_each(vm, references, lambda sessions, one: sessions.signal(one, signal), as_json=as_json)


@click.command("stop", help="End sessions: TERM, and KILL for what is still there then. Their logs are kept.")
@vm_of_session
@sessions_argument
@click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(min=0, max=MAX_STOP_TIMEOUT_S),
    default=float(STOP_TIMEOUT_S),
    show_default=True,
    metavar="SECONDS",
    help="Before KILL.",
)
@json_option
def stop(vm: str, references: tuple[str, ...], timeout: float, as_json: bool) -> int:
    return on_each(
        vm, references, lambda sessions, one: sessions.stop(one, timeout_s=timeout), as_json=as_json
    )


@click.command("rm", help="Remove sessions that have ended, and their logs.")
@vm_of_session
@sessions_argument
@click.option("-f", "--force", is_flag=True, help="Those that run, too: they are killed.")
@json_option
def remove(vm: str, references: tuple[str, ...], force: bool, as_json: bool) -> int:
    return on_each(vm, references, lambda sessions, one: sessions.remove(one, force=force), as_json=as_json)
