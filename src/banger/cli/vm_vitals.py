"""`banger vm stats`, `vm health` and `vm ping`. None of them touches a VM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from banger.cli.options import complete_vm, json_option, vm_argument
from banger.cli.render import out, print_fields, print_json, print_table
from banger.cli.vm_life import complain
from banger.client.client import Client
from banger.errors import BangerError
from banger.model.references import resolve

if TYPE_CHECKING:
    from banger.client import shapes

COLUMNS = (
    *("NAME", "STATE", "CPU", "MEM", "VIRTUAL", "OVERLAY", "DISK"),
    *("LOAD", "GUEST MEM", "GUEST /", "GUEST /root"),
)


def amount(count: int | None) -> str:
    """`12.3M`; "" for what is not known."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("", "K", "M"):
        if value < 1024:
            return f"{value:.1f}{unit}" if unit else str(count)
        value /= 1024
    return f"{value:.1f}G"


def _row(taken: shapes.VMStats) -> list[str]:
    stats = taken["stats"]
    cpu = stats.get("cpu_percent")
    return [
        taken["name"],
        taken["state"],
        "" if cpu is None else f"{cpu:.1f}%",
        amount(stats.get("rss_bytes")),
        amount(stats.get("vsz_bytes")),
        amount(stats.get("system_overlay_bytes")),
        amount(stats.get("work_disk_bytes")),
        *_guest_cells(taken.get("guest")),
    ]


def _guest_cells(guest: shapes.GuestFigures | None) -> list[str]:
    """What the guest itself uses; empty where it did not say."""
    if guest is None:
        return [""] * 4
    memory = _used(guest.get("memory_available_kib"), guest.get("memory_total_kib"), unit=1024)
    root = _used(guest.get("root_free_bytes"), guest.get("root_total_bytes"))
    work = _used(guest.get("work_free_bytes"), guest.get("work_total_bytes"))
    return [f"{guest.get('load1', 0.0):.2f}", memory, root, work]


def _used(free: int | None, total: int | None, *, unit: int = 1) -> str:
    return f"{amount((total - free) * unit)} of {amount(total * unit)}" if free is not None and total else ""


@click.command(
    "stats",
    help="What VMs use of the host, now: CPU (100% is one), memory and disk bytes of their monitors; "
    "and load, memory and disks as the guest sees them. Without names: the running ones.",
)
@click.argument("vms", metavar="[VM...]", nargs=-1, shell_complete=complete_vm)
@json_option
def stats(vms: tuple[str, ...], as_json: bool) -> int:
    failed = False
    taken: list[shapes.VMStats] = []
    with Client() as client:
        listed = client.list_vms()
        pairs = [(vm["id"], vm["name"]) for vm in listed]
        wanted: dict[str, None] = {}
        if not vms:
            wanted = dict.fromkeys(vm["id"] for vm in listed if vm["state"] == "running")
        for reference in vms:
            try:
                wanted[resolve(reference, pairs)] = None
            except BangerError as error:
                failed = True
                complain(error)
        for vm_id in wanted:
            try:
                taken.append(client.stats_vm(vm_id))
            except BangerError as error:
                failed = True
                complain(error)
    if as_json:
        print_json(taken)
    else:
        print_table(COLUMNS, [_row(one) for one in taken], state_column=1)
    return 1 if failed else 0


@click.command(
    "health", help="How a VM's guest is, as its agent says within 3 s. Of a dead VM: that it is not healthy."
)
@vm_argument
@json_option
def health(vm: str, as_json: bool) -> None:
    with Client() as client:
        said = client.health_vm(vm)
    if as_json:
        print_json(said)
        return
    load = said.get("load1")
    up_s = said.get("uptime_s")
    print_fields(
        [
            ("name", said["name"]),
            ("state", said["state"]),
            ("healthy", "yes" if said["healthy"] else "no"),
            ("phase", said.get("phase", "")),
            ("init", said.get("init", "")),
            ("up", "" if up_s is None else f"{up_s} s"),
            ("load", "" if load is None else f"{load:.2f}"),
            ("memory", _free(said.get("memory_available_kib"), said.get("memory_total_kib"), unit=1024)),
            ("/", _free(said.get("root_free_bytes"), said.get("root_total_bytes"))),
            ("/root", _free(said.get("work_free_bytes"), said.get("work_total_bytes"))),
        ]
    )


@click.command("ping", help="`alive` when the guest answers within 3 s, `dead` when the VM does not run.")
@vm_argument
def ping(vm: str) -> None:
    with Client() as client:
        out("alive" if client.health_vm(vm)["healthy"] else "dead")


def _free(free: int | None, total: int | None, *, unit: int = 1) -> str:
    return f"{amount(free * unit)} of {amount(total * unit)} free" if free is not None and total else ""
