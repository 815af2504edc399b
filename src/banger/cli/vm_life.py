"""Commands that change VMs, several at a time: start, stop, restart, kill, delete, set.

References are resolved against one listing, duplicates dropped; every operation is begun before any is
waited for, so they run at the same time. What went well is printed in the order given; exit 1 if any failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from banger.cli.escape import safe
from banger.cli.main import say
from banger.cli.options import (
    DISK,
    MEMORY,
    SIGNALS,
    VCPU,
    complete_words,
    json_option,
    quiet_option,
    vms_argument,
)
from banger.cli.progress import Progress
from banger.cli.render import out, print_json
from banger.client.client import Client, Operation
from banger.errors import BangerError
from banger.model.references import resolve

Begin = Callable[[Client, str], Operation]


def on_each(references: tuple[str, ...], begin: Begin, *, as_json: bool) -> int:
    """Begin it on each VM, wait for all; the exit status."""
    failed = False
    results: list[dict[str, Any]] = []
    with Client() as client:
        pairs = [(vm["id"], vm["name"]) for vm in client.list_vms()]
        names = dict(pairs)
        begun: dict[str, Operation] = {}
        for reference in references:
            try:
                vm_id = resolve(reference, pairs)
                if vm_id not in begun:
                    begun[vm_id] = begin(client, vm_id)
            except BangerError as error:
                failed = True
                complain(error)
        for vm_id, operation in begun.items():
            try:
                with Progress(names[vm_id] if len(begun) > 1 else "") as progress:
                    results.append(operation.wait(progress))
            except BangerError as error:
                failed = True
                complain(error)
                continue
            if not as_json:
                out(names[vm_id])
    if as_json:
        print_json(results)
    return 1 if failed else 0


def complain(error: BangerError) -> None:
    say(f"banger: {safe(error.brief)}")
    if error.hint:
        say(f"  {safe(error.hint)}")


@click.command("start", help="Boot VMs. One that runs is left as it is.")
@vms_argument
@json_option
@quiet_option
def start(vms: tuple[str, ...], as_json: bool) -> int:
    return on_each(vms, lambda client, vm: client.start_vm(vm), as_json=as_json)


@click.command(
    "stop",
    help="Shut VMs down in order, through the guest's own init. Work in their workspaces is kept first.",
)
@vms_argument
@json_option
@quiet_option
def stop(vms: tuple[str, ...], as_json: bool) -> int:
    return on_each(vms, lambda client, vm: client.stop_vm(vm), as_json=as_json)


@click.command("restart", help="Stop and start VMs.")
@vms_argument
@json_option
@quiet_option
def restart(vms: tuple[str, ...], as_json: bool) -> int:
    return on_each(vms, lambda client, vm: client.restart_vm(vm), as_json=as_json)


@click.command("kill", help="Signal the VMs' monitors, and tear down.")
@vms_argument
@click.option(
    "-s",
    "--signal",
    default="TERM",
    shell_complete=complete_words(*SIGNALS),
    help=f"{' '.join(SIGNALS[:-1])} or {SIGNALS[-1]}.",
)
@json_option
@quiet_option
def kill(vms: tuple[str, ...], signal: str, as_json: bool) -> int:
    return on_each(vms, lambda client, vm: client.kill_vm(vm, signal=signal), as_json=as_json)


discard_work_option = click.option(
    "--discard-work", is_flag=True, help="Do not keep the work in their workspaces; what was kept goes too."
)


@click.command(
    "delete",
    help="""End VMs if they are alive, and remove all of them but the work in their workspaces.

    What changed in the repository that was brought into a VM (commits, stashes, files) is kept on this host
    first; `banger workspace pull VM` gets it, also afterwards. When it cannot be kept the VM stays.

    \b
    banger vm delete web
    banger vm delete web --discard-work      and its work
    """,
)
@vms_argument
@discard_work_option
@json_option
@quiet_option
def delete(vms: tuple[str, ...], discard_work: bool, as_json: bool) -> int:
    return on_each(vms, lambda client, vm: client.delete_vm(vm, discard_work=discard_work), as_json=as_json)


@click.command(
    "set",
    help="""Change VMs. What cannot change live applies at the next start.

    \b
    banger vm set web --nat                  at once, also while it runs
    banger vm set web db --memory 4G         at their next start
    """,
)
@vms_argument
@click.option("--vcpu", type=VCPU, help="Virtual CPUs.")
@click.option("--memory", type=MEMORY, help="Such as 512M or 2G.")
@click.option("--disk-size", type=DISK, help="The work disk; it only grows.")
@click.option(
    "--nat/--no-nat", default=None, help="Whether the guest reaches what is beyond this host; at once."
)
@json_option
@quiet_option
def set_command(
    vms: tuple[str, ...],
    vcpu: int | None,
    memory: int | None,
    disk_size: int | None,
    nat: bool | None,
    as_json: bool,
) -> int:
    wanted = {"vcpu_count": vcpu, "memory_mib": memory, "work_disk_size_bytes": disk_size, "nat": nat}
    fields = {key: value for key, value in wanted.items() if value is not None}
    if not fields:
        raise click.UsageError("nothing to change was given")
    return on_each(vms, lambda client, vm: client.set_vm(vm, **fields), as_json=as_json)
