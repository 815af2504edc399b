"""`banger version`."""

from __future__ import annotations

import click

import banger
from banger.cli.options import json_option
from banger.cli.render import out, print_json
from banger.client.client import Client
from banger.errors import BangerError


@click.command("version", help="Versions of the command and, if it runs, of the daemon.")
@json_option
def version(as_json: bool) -> None:
    versions = {"client": banger.__version__}
    try:
        with Client(autostart=False, version="") as client:
            versions["daemon"] = client.info()["version"]
    except BangerError:
        pass
    if as_json:
        print_json(versions)
        return
    out(f"banger {versions['client']}")
    if versions.get("daemon", versions["client"]) != versions["client"]:
        out(f"daemon {versions['daemon']}")
