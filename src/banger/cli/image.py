"""`banger image …`."""

from __future__ import annotations

import click

from banger.cli.lazy import LazyGroup
from banger.cli.options import complete_image, json_option
from banger.cli.render import age, out, print_fields, print_json, print_table
from banger.cli.vm_life import complain
from banger.client.client import Client
from banger.errors import BangerError
from banger.model.references import SHOWN_ID_LENGTH
from banger.model.sizes import MIB

image = LazyGroup(
    "image",
    help="What VMs are made from.",
    lazy={
        "list": ("banger.cli.image:list_command", "List the images on this host, or those to be had."),
        "show": ("banger.cli.image:show", "All about one image."),
        "pull": ("banger.cli.image_pull:pull", "Get an image from the catalog, a registry or a file."),
        "register": ("banger.cli.image_own:register", "An image of files of your own, where they lie."),
        "promote": ("banger.cli.image_own:promote", "Copy a registered image's files in."),
        "delete": ("banger.cli.image:delete", "Remove images that no VM has."),
        "cache": ("banger.cli.image:cache", "The layers that pulls keep."),
    },
)


def _size(size: int) -> str:
    return f"{size // MIB}M" if size else ""


@click.command(
    "list",
    help="""List the images on this host, or with --available those of the catalog.

    \b
    banger image list
    banger image list --available        what `image pull NAME` gets, and which of it is here
    """,
)
@click.option("-q", "ids", is_flag=True, help="Ids only.")
@click.option("--available", is_flag=True, help="Those of the catalog.")
@json_option
def list_command(ids: bool, available: bool, as_json: bool) -> None:
    if ids and available:
        raise click.UsageError("-q is for ids, which images have once they are here: leave out --available")
    with Client() as client:
        if available:
            _print_catalog(client, as_json)
            return
        images = client.list_images()
    if as_json:
        print_json(images)
        return
    if ids:
        for one in images:
            click.echo(one["id"])
        return
    rows = [
        [
            one["id"][:SHOWN_ID_LENGTH],
            one["name"],
            "yes" if one.get("managed", True) else "no",
            _size(one.get("build_size", 0)),
            age(one["created_at"]),
        ]
        for one in images
    ]
    print_table(("ID", "NAME", "MANAGED", "SIZE", "CREATED"), rows)


def _print_catalog(client: Client, as_json: bool) -> None:
    entries = client.image_catalog()
    if as_json:
        print_json(entries)
        return
    rows = [
        [
            one["name"],
            "yes" if one["here"] else "no",
            f"debian {one['source']}" if one["kind"] == "debian" else one["source"],
            one["description"],
        ]
        for one in entries
    ]
    print_table(("NAME", "HERE", "FROM", "DESCRIPTION"), rows)


@click.command("show", help="All about one image.")
@click.argument("image", metavar="IMAGE", shell_complete=complete_image)
@json_option
def show(image: str, as_json: bool) -> None:
    with Client() as client:
        record = client.show_image(image)
    if as_json:
        print_json(record)
    else:
        print_fields([(key.replace("_", " "), str(value)) for key, value in record.items()])


@click.command("delete", help="Remove images and their files. One that VMs have stays, and they are named.")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete_image)
def delete(images: tuple[str, ...]) -> int:
    failed = 0
    with Client() as client:
        for reference in images:
            try:
                removed = client.delete_image(reference)
            except BangerError as error:
                if len(images) == 1:
                    raise
                complain(error)
                failed = 1
            else:
                out(removed["name"])
    return failed


cache = LazyGroup(
    "cache",
    help="The layers that pulls keep, so that the next one need not bring them again.",
    lazy={"prune": ("banger.cli.image:prune", "Remove them; images do not need them.")},
)


@click.command("prune", help="Remove the layers that pulls have kept. Images do not need them.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
def prune(dry_run: bool, as_json: bool) -> None:
    with Client() as client:
        pruned = client.prune_image_cache(dry_run=dry_run)
    if as_json:
        print_json(pruned)
        return
    verb = "would free" if dry_run else "freed"
    kept = f"; {pruned['in_use']} stay: a pull uses them" if pruned["in_use"] else ""
    out(f"{verb} {pruned['freed_bytes'] / MIB:.1f} MiB in {pruned['blobs']} blobs{kept}")
