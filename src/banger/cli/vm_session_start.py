"""`banger vm session start`."""

from __future__ import annotations

import os

import click

from banger.cli import state
from banger.cli.escape import safe
from banger.cli.execwords import VMThenCommand
from banger.cli.lazy import guest_command
from banger.cli.main import say
from banger.cli.options import NAME, json_option, read_environment
from banger.cli.render import out, print_json
from banger.cli.vm_session import vm_of_session
from banger.cli.vm_session_stream import attach_to, detach_option
from banger.client.client import Client
from banger.client.sessions import Sessions
from banger.model.sessions import parse_tags


@click.command(
    "start",
    cls=VMThenCommand,
    help="""Start a command that goes on by itself; print its id.

    \b
    banger vm session start web --name build --cwd /root/repo -- make -j4
    banger vm session start web -t --name shell --attach -- bash
    banger vm session start web -i --name db -- psql; echo 'select 1;' | banger vm session send web db -

    Its output is kept in the guest. stdin is closed, unless -i or -t keeps it open for attach and send.
    """,
)
@vm_of_session
@click.option("--name", type=NAME, help="Unique in the VM; a readable one is made up when left out.")
@click.option("-i", "--interactive", is_flag=True, help="Keep its stdin open, for attach and send.")
@click.option("-t", "--tty", "terminal", is_flag=True, help="With a terminal; includes -i.")
@click.option("-e", "--env", multiple=True, metavar="K=V", help="Set it; K alone takes it along.")
@click.option("--env-file", multiple=True, type=click.Path(dir_okay=False), help="Lines of K=V or K.")
@click.option("-w", "--cwd", "--workdir", "cwd", default="", metavar="DIR", help="Where in the guest.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="As whom.")
@click.option("--tag", "tags", multiple=True, metavar="K[=V]", help="To find it by; may be repeated.")
@click.option("-a", "--attach", is_flag=True, help="Attach at once, and exit with the command's status.")
@detach_option
@json_option
def start(
    vm: str,
    name: str | None,
    interactive: bool,
    terminal: bool,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    cwd: str,
    user: str,
    tags: tuple[str, ...],
    attach: bool,
    detach_keys: bytes,
    as_json: bool,
) -> int:
    ctx = click.get_current_context()
    argv = guest_command(ctx)
    if argv is None:
        raise click.UsageError(f"which command? banger vm session start {vm} -- CMD", ctx)
    if attach:
        state.own_failures_are_125()
    variables = read_environment(env, env_file)
    size = (0, 0)
    if terminal:
        variables.setdefault("TERM", os.environ.get("TERM") or "xterm")
        if attach:
            from banger.client.terminal import window_size

            size = window_size(0, 1, 2)
    with Client() as client:
        sessions = Sessions(client, vm)
        session = sessions.start(
            argv,
            name=name or "",
            env=variables,
            cwd=cwd,
            user=user,
            tags=parse_tags(tags),
            stdin=interactive or terminal,
            terminal=terminal,
            size=size,
        )
        if session["status"] == "failed" and session.get("launch_stage") != "running":
            failure = session.get("launch_message") or session.get("last_error") or "it could not be launched"
            status = session.get("exit_code", state.failure_status) if attach else state.failure_status
            if as_json and not attach:
                print_json(session)
            say(f"banger: session {session['name']}: {safe(failure)}")
            say(f"  banger vm session show {safe(vm)} {session['name']}")
            return status
        if attach:
            return attach_to(sessions, session, vm=vm, replay="all", keys=detach_keys, pass_end=True)
    if as_json:
        print_json(session)
    else:
        out(session["id"])
    return 0
