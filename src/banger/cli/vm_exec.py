"""`banger vm exec`, and what `vm run` and `vm shell` share with it: a command in a guest, exiting as it does.

Streams go straight to the guest's agent. Nothing is left after a crash: the agent hangs the command up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import click

from banger.cli import state
from banger.cli.escape import safe
from banger.cli.execwords import VMThenCommand
from banger.cli.lazy import guest_command
from banger.cli.main import say
from banger.cli.options import environment_options, read_environment, vm_argument
from banger.client.agentconnection import AgentConnection, connect_agent
from banger.client.client import Client
from banger.client.guest import NOT_FOUND, CommandNotStarted, Companion, Exec

SHELL_SCRIPT = """\
_t=${TERM:-} _c=
for _f in "$HOME/.terminfo" /etc/terminfo /lib/terminfo /usr/share/terminfo /usr/lib/terminfo; do
    [ -n "$_t" ] && [ -e "$_f/${_t%"${_t#?}"}/$_t" ] && _t=
    [ -e "$_f/x/xterm-256color" ] && _c=yes
done
[ -z "$_t" ] || [ -z "$_c" ] || export TERM=xterm-256color
case ${SHELL:-} in */nologin | */false) SHELL= ;; esac
[ -e /etc/passwd ] || SHELL=
[ -x "${SHELL:-}" ] || SHELL=/bin/bash
[ -x "$SHELL" ] || SHELL=/bin/sh
export SHELL
exec "$SHELL" -l
"""
"""The user's own login shell; bash, else sh, where nobody says which.

Where the guest has terminals' descriptions but none of ours, a common one.
"""
SHELL = ("/bin/sh", "-c", SHELL_SCRIPT)


class GuestOptions(NamedTuple):
    """How a command runs in the guest. purpose: "exec" or "shell". in_workspace: where cwd does not say."""

    env: Mapping[str, str]
    cwd: str
    user: str
    terminal: bool
    purpose: str = "exec"
    in_workspace: bool = True


def run_in_guest(
    client: Client,
    reference: str,
    argv: Sequence[str],
    *,
    how: GuestOptions,
    companion: Companion | None = None,
) -> int:
    """The guest command's exit status; 127 and 126 where it could not be started, said on stderr."""
    variables = dict(how.env)
    if how.terminal:
        variables.setdefault("TERM", os.environ.get("TERM") or "xterm")
        if how.purpose == "shell" and _speaks_utf8():
            variables.setdefault("LANG", "C.UTF-8")  # else vim and tmux take our terminal for an old one
    connection = connect_agent(client, reference, purpose=how.purpose)
    cwd = _folder(connection, reference, how)
    execution = Exec(connection, terminal=how.terminal, companion=companion)
    try:
        return execution.run(argv, variables, cwd=cwd, user=how.user)
    except CommandNotStarted as failure:
        if cwd != how.cwd and failure.data.get("agent_code") == "no_cwd":
            say(f"banger: warning: {safe(cwd)} is not in the guest any more: this starts elsewhere")
            elsewhere = how._replace(in_workspace=False)
            return run_in_guest(client, reference, argv, how=elsewhere, companion=companion)
        if argv is SHELL and failure.status == NOT_FOUND:
            say("banger: the guest has no shell: there is no /bin/sh")
            say(
                "  what it has runs with banger vm exec, or as its image says with banger vm run --entrypoint"
            )
            return failure.status
        return _not_started(failure)


def _folder(connection: AgentConnection, reference: str, how: GuestOptions) -> str:
    """Where it starts; "" is the agent's own choice."""
    if connection.workspace is None or not how.in_workspace:
        return how.cwd
    from banger.cli.workspacestart import default_folder, warn_if_moved

    warn_if_moved(connection.workspace, reference)
    return how.cwd or default_folder(connection.workspace, user=how.user)


def _speaks_utf8() -> bool:
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or ""
    return locale.lower().replace("-", "").endswith("utf8")


def _not_started(failure: CommandNotStarted) -> int:
    if not failure.status:
        raise failure
    say(f"banger: {safe(failure.brief)}")
    return failure.status


def leave_in_guest(client: Client, reference: str, argv: Sequence[str], *, how: GuestOptions) -> int:
    """0 once it runs, with no stream of ours; 127 and 126 as above."""
    from banger.client.detached import start_detached

    connection = connect_agent(client, reference, purpose=how.purpose)
    try:
        cwd = _folder(connection, reference, how)
        start_detached(connection, argv, how.env, cwd=cwd, user=how.user)
    except CommandNotStarted as failure:
        return _not_started(failure)
    return 0


@click.command(
    "exec",
    cls=VMThenCommand,
    help="""Run a command in a running VM, and exit with its status.

    \b
    banger vm exec web systemctl status ssh
    echo hi | banger vm exec web -- cat
    banger vm exec -it -w /tmp web bash
    banger vm exec web --env A=1 --user nobody -- env
    banger vm exec --auto-prepare web make test     with the host's repository as it is now

    In a VM with a workspace it starts in /root/repo, and warns when the host's repository has moved on.
    Options may also follow VM; they then end at `--`. stdin is passed on, as ssh does it.
    127: no such command; 126: it cannot be executed; 128+N: signal N ended it; 125: banger failed.
    """,
)
@vm_argument
@environment_options
@click.option("-d", "--detach", is_flag=True, help="Start it and leave: no streams, no status.")
@click.option(
    "--auto-prepare",
    is_flag=True,
    help="Where the host's repository has moved on: bring it in again, unless there is work in the guest.",
)
def exec_command(
    vm: str,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    cwd: str,
    user: str,
    terminal: bool,
    detach: bool,
    auto_prepare: bool,
) -> int:
    ctx = click.get_current_context()
    argv = guest_command(ctx)
    if argv is None:
        raise click.UsageError(f"which command? banger vm exec {vm} CMD", ctx)
    state.own_failures_are_125()
    how = GuestOptions(read_environment(env, env_file), cwd, user, terminal)
    with Client() as client:
        if auto_prepare:
            from banger.cli.vm_workspace_in import prepare_again

            prepare_again(client, vm)
        if detach:
            return leave_in_guest(client, vm, argv, how=how)
        return run_in_guest(client, vm, argv, how=how)
