"""`banger vm shell`: the user's own login shell in a guest, at our terminal, through the guest's agent.

Without a terminal it reads commands from stdin, as shells do. Nothing is left after a crash.
"""

from __future__ import annotations

import click

from banger.cli import state
from banger.cli.options import environment_options, read_environment, vm_argument
from banger.cli.render import is_terminal
from banger.cli.vm_exec import SHELL, GuestOptions, run_in_guest
from banger.client.client import Client


@click.command(
    "shell",
    help="""A shell in a running VM: the user's own, as in /etc/passwd. Needs no network and no sshd.

    \b
    banger vm shell web
    banger vm shell web -u nobody -w /tmp
    echo 'uname -a' | banger vm shell web
    """,
)
@vm_argument
@environment_options
def shell(
    vm: str, env: tuple[str, ...], env_file: tuple[str, ...], cwd: str, user: str, terminal: bool
) -> int:
    state.own_failures_are_125()
    variables = read_environment(env, env_file)
    terminal = terminal or (is_terminal(0) and is_terminal(1))
    with Client() as client:
        return run_in_guest(
            client, vm, SHELL, how=GuestOptions(variables, cwd, user, terminal, purpose="shell")
        )
