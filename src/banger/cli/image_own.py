"""`banger image register` and `promote`: images of the user's own files."""

from __future__ import annotations

import os

import click

from banger.cli.options import NAME, complete_image, json_option, quiet_option
from banger.cli.progress import Progress
from banger.cli.render import out, print_json
from banger.client.client import Client


@click.command(
    "register",
    help="""An image of files of your own, which stay where they are and yours; print its id.

    \b
    banger image register mine --rootfs mine.ext4 --kernel vmlinux --modules /lib/modules/6.1.0
    banger image promote mine          # copy them in

    The root file system is an ext4, of which guests write nothing; the kernel is uncompressed.
    """,
)
@click.argument("name", type=NAME)
@click.option("--rootfs", required=True, type=click.Path(dir_okay=False), help="An ext4 in a file.")
@click.option("--kernel", required=True, type=click.Path(dir_okay=False), help="An uncompressed vmlinux.")
@click.option(
    "--initrd", default="", type=click.Path(dir_okay=False), help="The kernel's own, if it needs one."
)
@click.option(
    "--modules",
    default="",
    type=click.Path(file_okay=False),
    help="Its module tree; without one all that a guest needs must be built in.",
)
@json_option
def register(name: str, rootfs: str, kernel: str, initrd: str, modules: str, as_json: bool) -> None:
    paths = {"rootfs": rootfs, "kernel": kernel, "initrd": initrd, "modules": modules}
    with Client() as client:
        fields = {key: os.path.abspath(path) for key, path in paths.items() if path}
        image = client.register_image(name=name, **fields)
    if as_json:
        print_json(image)
    else:
        out(image["id"])


@click.command("promote", help="Copy a registered image's files in: from then on it is banger's own.")
@click.argument("image", metavar="IMAGE", shell_complete=complete_image)
@json_option
@quiet_option
def promote(image: str, as_json: bool) -> None:
    with Client() as client, Progress() as progress:
        record = client.promote_image(image).wait(progress)
    if as_json:
        print_json(record)
    else:
        out(record["name"])
