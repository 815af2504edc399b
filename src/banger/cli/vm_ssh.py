"""`banger vm ssh`: becomes the system's ssh, with banger's key and banger's known_hosts."""

from __future__ import annotations

import os

import click

from banger.cli import state
from banger.cli.lazy import GuestCommand, guest_command
from banger.cli.options import vm_argument
from banger.client.client import Client
from banger.config.paths import Paths
from banger.errors import BangerError, ErrorCode


def ssh_words(paths: Paths, name: str, *, user: str, terminal: bool, command: list[str] | None) -> list[str]:
    """The whole command line. The command's words are joined and parsed by the guest's shell, as ssh does."""
    from banger.local.sshconfig import options

    words = ["ssh"]
    for option, value in options(paths):
        if option != "User":
            words += ["-o", f"{option}={value}"]
    words += ["-l", user, *(["-t"] if terminal else []), f"{name}.vm"]
    return words if command is None else [*words, "--", *command]


@click.command(
    "ssh",
    cls=GuestCommand,
    help="""Log in with the system's ssh, or run a command; exits as ssh does.

    The connection goes over the guest's own socket: it needs no network. `banger vm shell` and
    `banger vm exec` need no ssh server in the guest either.

    \b
    banger vm ssh web
    banger vm ssh web -- systemctl status ssh
    banger ssh-config --install; ssh web.vm    the same for ssh, scp, sftp, rsync and git
    """,
)
@vm_argument
@click.option("--user", "-l", default="root", show_default=True, help="Who to log in as.")
@click.option("-t", "--terminal", is_flag=True, help="A terminal for the command (a login has one).")
def ssh(vm: str, user: str, terminal: bool) -> None:
    command = guest_command(click.get_current_context())
    if command is not None:
        state.own_failures_are_125()
    if not user or user.startswith("-"):
        raise click.UsageError(f"no such user: {user!a}", click.get_current_context())
    with Client() as client:
        name = client.connect_vm(vm, purpose="shell")["name"]
        words = ssh_words(client.paths, name, user=user, terminal=terminal, command=command)
    try:
        os.execvp(words[0], words)
    except OSError as error:
        raise BangerError(
            ErrorCode.HOST_UNSUITABLE,
            f"ssh cannot be run: {error.strerror}",
            hint=f"install openssh-client, or: banger vm shell {name}",
        ) from error
