"""`banger image pull`, and the pull that `vm run --image REF` does of what is not here yet."""

from __future__ import annotations

import os
from typing import Any

import click

from banger.cli.boot import Interrupted, boot, interruptible, uninterrupted
from banger.cli.escape import safe
from banger.cli.options import DISK, NAME, complete_any_kernel, complete_pullable, json_option, quiet_option
from banger.cli.progress import Progress
from banger.cli.render import out, print_json
from banger.client.client import Client
from banger.errors import BangerError, ErrorCode


@click.command(
    "pull",
    help="""Get an image: one of the catalog, or any from a registry, as docker names it; print its name.

    \b
    banger image pull debian-bookworm
    banger image pull alpine:3.20
    banger image pull registry.example.org/team/app@sha256:… --name app
    banger image pull --file app.tar

    Logins are those of docker and podman. What is here already is not brought again.
    """,
)
@click.argument(
    "reference", metavar="[NAME|REFERENCE]", required=False, default="", shell_complete=complete_pullable
)
@click.option("--name", type=NAME, help="Its name here; made from the reference when left out.")
@click.option("--size", type=DISK, help="Of its root file system; its content's and half again, at least 1G.")
@click.option(
    "--kernel",
    default="",
    metavar="KERNEL",
    shell_complete=complete_any_kernel,
    help="What it boots; the default one when left out.",
)
@click.option(
    "--file",
    "file",
    default="",
    type=click.Path(dir_okay=False),
    help="From an OCI or docker archive; REFERENCE says which image of it.",
)
@json_option
@quiet_option
def pull(reference: str, name: str | None, size: int | None, kernel: str, file: str, as_json: bool) -> int:
    if not reference and not file:
        raise click.UsageError("which image? a name of the catalog, a reference, or --file")
    fields: dict[str, Any] = {
        "reference": reference,
        "name": name or "",
        "size_bytes": size,
        "kernel": kernel,
        "file": os.path.abspath(file) if file else "",
    }
    try:
        with Client() as client, Progress() as progress:
            image = pull_image(client, fields, progress)
    except Interrupted as interrupted:
        return interrupted.status
    if as_json:
        print_json(image)
    else:
        out(image["name"])
    return 0


def pull_image(client: Client, fields: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The image's record. Interrupted cancels the pull; what was brought stays in the cache."""
    body = {key: value for key, value in fields.items() if value}
    if body.get("reference") and not body.get("file"):
        from banger.local.pulling import request_credentials

        credentials, notes = request_credentials(body["reference"], client.paths.config_file)
        for note in notes:
            progress.line(f"warning: {safe(note)}", always=True)
        if credentials:
            body["credentials"] = credentials
    with interruptible():
        operation = client.pull_image(**body)
        try:
            return operation.wait(progress)
        except Interrupted:
            with uninterrupted():
                operation.cancel()
                try:
                    operation.wait()
                except BangerError:
                    pass  # aborted, as it should be
            raise


def boot_pulled(client: Client, fields: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """As boot(), after a pull of an image that is not here."""
    try:
        return boot(client, fields, progress)
    except BangerError as error:
        # the daemon pulls what the catalog has, but knows no login
        wants_login = error.code is ErrorCode.PERMISSION_DENIED
        if not (wants_login or error.code is ErrorCode.NOT_FOUND) or not error.data.get("image"):
            raise
    image = pull_image(client, {"reference": fields["image"]}, progress)
    return boot(client, {**fields, "image": image["id"]}, progress)
