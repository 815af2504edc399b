"""`banger vm prune`: what is not running goes, after a table and a question."""

from __future__ import annotations

import click

from banger.cli.main import say
from banger.cli.options import json_option, quiet_option
from banger.cli.render import VM_COLUMNS, is_terminal, print_table, vm_row
from banger.cli.vm_life import discard_work_option, on_each
from banger.client.client import Client

NOT_RUNNING = ("created", "stopped", "error")


@click.command(
    "prune",
    help="""Delete every VM that is not running, after a question. Running ones stay.

    Work in their workspaces is kept on this host first, as vm delete does.
    """,
)
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@discard_work_option
@json_option
@quiet_option
def prune(force: bool, discard_work: bool, as_json: bool) -> int:
    with Client() as client:
        doomed = [vm for vm in client.list_vms() if vm["state"] in NOT_RUNNING]
    if not doomed:
        if as_json:
            click.echo("[]")
        else:
            say("every VM is running, there is nothing to delete")
        return 0
    if not force:
        if not is_terminal(0) or as_json:
            raise click.UsageError(f"{len(doomed)} VMs would be deleted, and there is nobody to ask: give -f")
        print_table(VM_COLUMNS, [vm_row(vm) for vm in doomed], state_column=VM_COLUMNS.index("STATE"))
        if not click.confirm(f"Delete {len(doomed)} VM{'s' if len(doomed) > 1 else ''}?", err=True):
            return 1
    return on_each(
        tuple(vm["id"] for vm in doomed),
        lambda client, vm: client.delete_vm(vm, if_not_running=True, discard_work=discard_work),
        as_json=as_json,
    )
