"""`banger ssh-config`: prints what ssh needs to know about guests, or fences it into ~/.ssh/config."""

from __future__ import annotations

import os

import click

from banger.cli.options import json_option
from banger.cli.render import out, print_json
from banger.config.paths import resolve_paths


@click.command(
    "ssh-config",
    help="""Make `ssh NAME.vm` work, and scp, sftp, rsync and git with it.

    Alone it prints the `Host *.vm` block. --install writes that to a file of banger's, and puts an
    Include of it at the top of ~/.ssh/config, between two marked lines; the rest of the file stays
    byte for byte. Your own known_hosts is never touched.

    \b
    banger ssh-config --install
    ssh web.vm
    scp notes.txt web.vm:
    banger ssh-config --uninstall
    """,
)
@click.option("--install", is_flag=True, help="Put the Include into ~/.ssh/config.")
@click.option("--uninstall", is_flag=True, help="Take it out again.")
@click.option(
    "--file", "file", type=click.Path(dir_okay=False), help="Another configuration than ~/.ssh/config."
)
@json_option
def ssh_config(install: bool, uninstall: bool, file: str | None, as_json: bool) -> None:
    from banger.cli.escape import safe
    from banger.local import sshconfig

    if install and uninstall:
        raise click.UsageError("--install or --uninstall, not both", click.get_current_context())
    paths = resolve_paths()
    if not install and not uninstall:
        if as_json:
            print_json({"host": "*.vm", "options": dict(sshconfig.options(paths))})
        else:
            out(sshconfig.host_block(paths).rstrip("\n"))
        return
    config = os.path.abspath(file) if file else sshconfig.user_config()
    changed = (sshconfig.install if install else sshconfig.uninstall)(paths, config)
    if as_json:
        print_json({"file": config, "include": paths.ssh_config, "installed": install, "changed": changed})
    elif install:
        out(safe(f"{config} includes {paths.ssh_config}" + ("" if changed else " already")))
        if "SUDO_UID" in os.environ and not file:
            out("this is root's: use `sudo ssh NAME.vm`, as guests are root's too")
    else:
        out(safe(f"{config} is as it was before banger" if changed else f"{config} has nothing of banger's"))
