"""`banger vm session attach`, `logs` and `send`: bytes between our streams and a session's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from banger.cli import state
from banger.cli.escape import safe
from banger.cli.main import say
from banger.cli.options import BadValue, Checked
from banger.cli.vm_session import session_argument, vm_of_session
from banger.client.client import Client
from banger.client.keys import DEFAULT_DETACH_KEYS, parse_detach_keys
from banger.client.sessions import Sessions
from banger.errors import BangerError, ErrorCode
from banger.model.sessions import MAX_TAIL_LINES

if TYPE_CHECKING:
    from banger.client import shapes

SIGPIPE_STATUS = 141

detach_option = click.option(
    "--detach-keys",
    type=Checked("KEYS", parse_detach_keys),
    default=DEFAULT_DETACH_KEYS,
    show_default=True,
    help="Keys that leave it running.",
)


def attach_to(
    sessions: Sessions,
    session: shapes.Session,
    *,
    vm: str,
    replay: str,
    keys: bytes,
    stdin: bool = True,
    pass_end: bool = False,
) -> int:
    """Until it ends or is left; the exit status."""
    name = session["name"]
    outcome = sessions.attach(
        session,
        stdin=0 if stdin else None,
        replay=replay,
        detach_keys=keys,
        pass_end=pass_end,
        on_read_only=lambda: say(f"banger: another one writes to {safe(name)}: this attachment only reads"),
    )
    if outcome.detached and outcome.status != SIGPIPE_STATUS and not state.quiet:
        say(f"detached: {safe(name)} goes on; banger vm session attach {safe(vm)} {safe(name)}")
    return outcome.status


@click.command(
    "attach",
    help="""See what a session says, and type what it reads, until it ends or you leave.

    What was missed since somebody was attached last is shown first. ctrl-p ctrl-q leaves the session
    running; so does closing the terminal. At a session whose stdin is closed, or where another one
    writes, ctrl-c leaves, too. Exits with the command's status when it ends, with 0 when left by keys.
    """,
)
@vm_of_session
@session_argument
@click.option("--no-stdin", is_flag=True, help="Only read.")
@detach_option
@click.option("--from-start", is_flag=True, help="Show all that was ever said first.")
@click.option("--no-replay", is_flag=True, help="Show only what is said from now on.")
def attach(
    vm: str, reference: str, no_stdin: bool, detach_keys: bytes, from_start: bool, no_replay: bool
) -> int:
    if from_start and no_replay:
        raise click.UsageError("--from-start and --no-replay exclude each other", click.get_current_context())
    state.own_failures_are_125()
    replay = "all" if from_start else "none" if no_replay else "unseen"
    with Client() as client:
        sessions = Sessions(client, vm)
        session = sessions.show(reference)
        if not session.get("attachable"):
            message = session.get("launch_message") or session.get("last_error") or "it was never launched"
            raise BangerError(
                ErrorCode.WRONG_STATE,
                f"session {session['name']} has nothing to attach to: {message}",
                hint=f"banger vm session show {vm} {session['name']}",
            )
        return attach_to(sessions, session, vm=vm, replay=replay, keys=detach_keys, stdin=not no_stdin)


@click.command("logs", help="What a session has said: its stdout on stdout, its stderr on stderr.")
@vm_of_session
@session_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what is said, until the session ends.")
@click.option(
    "-n", "--tail", type=click.IntRange(min=0, max=MAX_TAIL_LINES), help="Only the last so many lines."
)
@click.option("--stdout", "stdout", is_flag=True, help="Only what it said on stdout.")
@click.option("--stderr", "stderr", is_flag=True, help="Only what it said on stderr.")
def logs(vm: str, reference: str, follow: bool, tail: int | None, stdout: bool, stderr: bool) -> int:
    with Client() as client:
        sessions = Sessions(client, vm)
        both = stdout == stderr
        return sessions.logs(
            sessions.show(reference), follow=follow, tail=tail, stdout=both or stdout, stderr=both or stderr
        )


@click.command(
    "send",
    help="""Write to a session's stdin: TEXT and a newline, or with - what our own stdin has.

    \b
    banger vm session send web db 'select 1;'
    banger vm session send web db - < dump.sql
    banger vm session send --eof web db             end of file
    """,
)
@vm_of_session
@session_argument
@click.argument("text", metavar="[TEXT|-]", required=False)
@click.option("--eof", "end", is_flag=True, help="End of file after it: nothing more can be sent.")
@click.option("--no-newline", is_flag=True, help="TEXT only.")
def send(vm: str, reference: str, text: str | None, end: bool, no_newline: bool) -> None:
    if text is None and not end:
        raise BadValue(
            "send what? TEXT, - for stdin, or --eof", f"banger vm session send {vm} {reference} TEXT"
        )
    data = b"" if text is None or text == "-" else os.fsencode(text) + (b"" if no_newline else b"\n")
    with Client() as client:
        sessions = Sessions(client, vm)
        session = sessions.show(reference)
        if session.get("stdin_mode") != "pipe":
            raise BangerError(
                ErrorCode.WRONG_STATE,
                f"session {session['name']} was started with its stdin closed",
                hint="banger vm session start -i keeps it open",
            )
        sessions.send(session, data, stdin=0 if text == "-" else None, end=end)
