"""`banger vm list`, `ps` and `vm show`. The hot path: nothing is imported here that it does not need."""

from __future__ import annotations

import click

from banger.cli.options import json_option, vm_argument
from banger.cli.render import (
    VM_COLUMNS,
    age,
    out,
    print_fields,
    print_json,
    print_table,
    published_ports,
    published_states,
    vm_row,
    workspace_fields,
)
from banger.client.client import Client
from banger.model.sizes import format_size


def _print(*, only_running: bool, ids: bool, as_json: bool) -> None:
    with Client() as client:
        vms = client.list_vms()
    if only_running:
        vms = [vm for vm in vms if vm["state"] not in ("stopped", "created")]
    if as_json:
        print_json(vms)
    elif ids:
        for vm in vms:
            out(vm["id"])
    else:
        columns: tuple[str, ...] = VM_COLUMNS
        rows = [vm_row(vm) for vm in vms]
        if any(vm["spec"].get("published") for vm in vms):  # few publish: no column for the others
            columns = (*columns, "PORTS")
            rows = [[*row, published_ports(vm)] for row, vm in zip(rows, vms, strict=True)]
        print_table(columns, rows, state_column=VM_COLUMNS.index("STATE"))


@click.command("list", help="List the VMs, oldest first.")
@click.option("-q", "ids", is_flag=True, help="Ids only.")
@click.option("-a", "--all", "_all", is_flag=True, hidden=True)
@json_option
def list_command(ids: bool, _all: bool, as_json: bool) -> None:
    _print(only_running=False, ids=ids, as_json=as_json)


@click.command("ps", help="List the VMs that are not stopped.")
@click.option("-a", "--all", "everything", is_flag=True, help="Stopped ones too.")
@click.option("-q", "ids", is_flag=True, help="Ids only.")
@json_option
def ps(everything: bool, ids: bool, as_json: bool) -> None:
    _print(only_running=not everything, ids=ids, as_json=as_json)


@click.command("show", help="All about one VM.")
@vm_argument
@json_option
def show(vm: str, as_json: bool) -> None:
    with Client() as client:
        record = client.show_vm(vm)
    if as_json:
        print_json(record)
        return
    spec, runtime = record["spec"], record["runtime"]
    print_fields(
        [
            ("id", record["id"]),
            ("name", record["name"]),
            ("state", record["state"]),
            ("image", record.get("image", "") or record["image_id"]),
            ("vcpu", str(spec["vcpu_count"])),
            ("memory", format_size(spec["memory_mib"] << 20)),
            ("disk", format_size(spec["work_disk_size_bytes"])),
            ("system overlay", format_size(spec["system_overlay_size_bytes"])),
            ("nat", "yes" if spec["nat_enabled"] else "no"),
            ("auto remove", "yes" if record.get("auto_remove") else ""),
            ("ip", runtime.get("guest_ip", "")),
            ("dns name", runtime.get("dns_name", "")),
            *(("published", text) for text in published_states(record)),
            ("folder", runtime.get("vm_dir", "")),
            ("console log", runtime.get("log_path", "")),
            *workspace_fields(record),
            ("created", f"{record['created_at']} ({age(record['created_at'])})"),
            ("last used", f"{record['last_touched_at']} ({age(record['last_touched_at'])})"),
            ("last error", runtime.get("last_error", "")),
        ]
    )
