"""`banger vm exec`, and what `vm run` shares with it: a command in a guest, exiting as it does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import click

from banger.cli import state
from banger.cli.escape import safe
from banger.cli.lazy import GuestCommand, guest_command
from banger.cli.main import say
from banger.cli.options import environment_options, read_environment, vm_argument
from banger.client.client import Client
from banger.client.guest import CommandNotStarted, Companion, Exec, connect_agent

SHELL = ("/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash -l; exec sh -l")
"""An interactive shell in any image: bash where there is one."""


class GuestOptions(NamedTuple):
    """How a command runs in the guest. purpose: "exec" or "shell"."""

    env: Mapping[str, str]
    cwd: str
    user: str
    terminal: bool
    purpose: str = "exec"


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
    connection = connect_agent(client, reference, purpose=how.purpose)
    execution = Exec(connection, terminal=how.terminal, companion=companion)
    try:
        return execution.run(argv, variables, cwd=how.cwd, user=how.user)
    except CommandNotStarted as failure:
        if not failure.status:
            raise
        say(f"banger: {safe(failure.brief)}")
        return failure.status


@click.command(
    "exec",
    cls=GuestCommand,
    help="""Run a command in a running VM, and exit with its status.

    \b
    banger vm exec web -- systemctl status ssh
    echo hi | banger vm exec web -- cat
    banger vm exec -t web -- bash
    """,
)
@vm_argument
@environment_options
def exec_command(
    vm: str,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    cwd: str,
    user: str,
    terminal: bool,
) -> int:
    ctx = click.get_current_context()
    argv = guest_command(ctx)
    if argv is None:
        raise click.UsageError(f"which command? banger vm exec {vm} -- CMD", ctx)
    state.own_failures_are_125()
    variables = read_environment(env, env_file)
    with Client() as client:
        return run_in_guest(client, vm, argv, how=GuestOptions(variables, cwd, user, terminal))
