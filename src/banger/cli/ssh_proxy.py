"""`banger ssh-proxy HOST PORT`: ssh's ProxyCommand for guests. Hidden: `ssh-config` writes it for you."""

from __future__ import annotations

import os
import stat

import click

from banger.cli import state
from banger.cli.escape import safe
from banger.cli.main import say
from banger.client.client import Client
from banger.client.forward import SSH_PORT, open_ssh, pass_on, pump

DOMAIN = ".vm"


@click.command(
    "ssh-proxy",
    help="Carry an ssh connection to a guest's own port, over its socket: for ssh's ProxyCommand.",
)
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535), default=SSH_PORT)
@click.option("--pass-fd", is_flag=True, help="Hand the connection itself over (ProxyUseFdpass).")
def ssh_proxy(host: str, port: int, pass_fd: bool) -> None:
    name = host.removesuffix(DOMAIN)

    def waiting() -> None:
        if not state.quiet:
            say(f"banger: {safe(name)} is still starting, waiting for its ssh server")

    with Client() as client:
        connection = open_ssh(client, name, port=port, waiting=waiting)
    with connection:
        # a client that knows no ProxyUseFdpass reads the same configuration, and gives us pipes
        if pass_fd and stat.S_ISSOCK(os.fstat(1).st_mode):
            pass_on(connection, 1)
        else:
            pump(connection)
