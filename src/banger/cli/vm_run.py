"""`banger vm run` and `vm create`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from banger.cli import state
from banger.cli.boot import Interrupted, Lease, delete, owned, uninterrupted
from banger.cli.image_pull import boot_pulled
from banger.cli.lazy import GuestCommand, guest_command
from banger.cli.options import (
    MODES,
    complete_folder,
    create_fields,
    environment_options,
    json_option,
    quiet_option,
    read_environment,
    sizing_options,
    travel_options,
)
from banger.cli.progress import Progress
from banger.cli.render import is_terminal, out, print_json
from banger.cli.vm_exec import SHELL, GuestOptions, leave_in_guest, run_in_guest
from banger.cli.vm_publish import as_body, publish_option
from banger.client.client import Client
from banger.errors import BangerError, ErrorCode
from banger.model.published import PortSpec, endpoint

if TYPE_CHECKING:
    from banger.local.gittravel import Travel
    from banger.local.tooling import Tooling


@click.command("create", help="Make a VM and boot it; print its id.")
@sizing_options
@publish_option
@click.option("--no-start", is_flag=True, help="Only make it.")
@json_option
@quiet_option
def create(published: tuple[PortSpec, ...], no_start: bool, as_json: bool, **sizing: Any) -> int:
    fields = create_fields(**sizing)
    if published:
        fields["publish"] = as_body(published)
    if no_start:
        fields["start"] = False
    try:
        with Client() as client, Progress() as progress:
            vm = boot_pulled(client, owned(fields, progress), progress)
    except Interrupted as interrupted:
        return interrupted.status
    if as_json:
        print_json(vm)
    else:
        out(vm["id"])
    return 0


@click.command(
    "run",
    cls=GuestCommand,
    help="""Make a VM, boot it, and run a shell in it, or the command after `--`.

    With PATH, the git repository there is in the guest first, at /root/repo, and the shell or command
    starts in it. Your repository is only read; what is done in the guest is kept on this host when the VM
    stops or goes. Tools that it names (mise.toml, .mise.toml, .tool-versions) are installed in the guest,
    which needs --nat: in the background of a shell at a terminal, else before anything else.

    \b
    banger vm run                              a shell; the VM stays
    banger vm run ~/src/app                    a shell in a machine with your repository
    banger vm run --rm . -- make test          this folder's repository, one command; the VM goes
    banger vm run . --dry-run                  what would travel
    banger vm run --rm -- sh -c 'uname -a'     one command; the VM goes
    banger vm run --name web -d                no shell: it stays and runs
    banger vm run --nat -p 8080:80             with a way out, and this host's port 8080 leading in
    banger vm run --image alpine               an image of a registry, pulled when it is not here
    banger vm run --image IMG --entrypoint     what the image is made to run; words after -- are for it
    """,
)
@click.argument("path", metavar="[PATH]", required=False, default=None, shell_complete=complete_folder)
@travel_options
@sizing_options
@publish_option
@environment_options
@click.option("--rm", "remove", is_flag=True, help="Delete the VM when the shell or command ends.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running; print its id.")
@click.option(
    "--entrypoint",
    is_flag=True,
    help="Run the image's entrypoint and command, as its user; CMD takes its command's place.",
)
@quiet_option
def run(
    path: str | None,
    mode: str | None,
    branch: str,
    from_ref: str,
    readonly: bool,
    include_untracked: bool,
    dry_run: bool,
    no_bootstrap: bool,
    published: tuple[PortSpec, ...],
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    cwd: str,
    user: str,
    terminal: bool,
    remove: bool,
    detach: bool,
    entrypoint: bool,
    **sizing: Any,
) -> int:
    began = time.monotonic()
    ctx = click.get_current_context()
    argv = guest_command(ctx)
    if detach and remove:
        raise click.UsageError("--detach leaves the VM and --rm removes it: choose one", ctx)
    if detach and argv is not None and not entrypoint:
        raise click.UsageError("--detach runs no command: leave it out, or run it with banger vm exec", ctx)
    of_paths = (mode, branch, from_ref, readonly, include_untracked, dry_run, no_bootstrap)
    if path is None and any(of_paths):
        raise click.UsageError("which repository? banger vm run PATH", ctx)
    fields = create_fields(**sizing)
    if published:
        fields["publish"] = as_body(published)
    if remove:
        fields["auto_remove"] = True
    variables = read_environment(env, env_file)
    wants_shell = argv is None and not entrypoint and not detach
    if not detach:
        state.own_failures_are_125()
        # a shell at a terminal is interactive; a command is only when -t says so
        terminal = terminal or (wants_shell and is_terminal(0) and is_terminal(1))
    try:
        with Client() as client, Progress() as progress, ExitStack() as stack:
            packed = stack.enter_context(ExitStack())
            travel: Travel | None = None
            tooling: Tooling | None = None
            if path is not None:
                from banger.cli.bringing import Wanted, look_at, made_ready, show_plan

                wanted = Wanted(path, mode or MODES[0], branch, from_ref, readonly, include_untracked)
                source = look_at(wanted)
                if dry_run:
                    show_plan(source, progress, bootstrap=not no_bootstrap)
                    return 0
                travel = packed.enter_context(made_ready(source, progress))
                if not no_bootstrap:
                    from banger.cli.tooling import tooling_of

                    tooling = tooling_of(client, travel.plan.files, nat=fields.get("nat"))
                    if tooling is not None:
                        fields["nat"] = True  # the daemon may have read an older configuration
            vm = boot_pulled(client, owned(fields, progress), progress)
            vm_id, name = str(vm["id"]), str(vm["name"])
            lease = stack.enter_context(_removed_in_the_end(client, vm_id)) if remove else None
            for port in vm["spec"].get("published", ()):
                where = endpoint(port["host_address"], port["host_port"])
                progress.line(f"{where} leads to its port {port['guest_port']}")
            if travel is not None:
                from banger.cli.bringing import bring_into_new

                bring_into_new(client, vm, travel, progress=progress, stays=not remove)
                packed.close()
            if tooling is not None:
                from banger.cli.tooling import install_in_new

                install_in_new(
                    client,
                    vm,
                    tooling,
                    progress=progress,
                    shell=wants_shell,
                    terminal=terminal,
                    stays=not remove,
                )
            progress.line(f"ready in {time.monotonic() - began:.1f}s", dim=True)
            if entrypoint:
                argv, user = _image_command(client, vm, argv, user)
            if argv and tooling is not None:
                from banger.cli.tooling import command_with_tools

                argv = command_with_tools(argv, user=user)
            if detach:
                if argv:
                    how = GuestOptions(variables, cwd, user, terminal=False)
                    if status := leave_in_guest(client, vm_id, argv, how=how):
                        return status
                out(vm_id)
                progress.line(f"{name} runs: banger vm shell {name}, banger vm delete {name}", dim=True)
                return 0
            how = GuestOptions(variables, cwd, user, terminal, "exec" if argv else "shell")
            return run_in_guest(client, vm_id, argv or SHELL, how=how, companion=lease)
    except Interrupted as interrupted:
        return interrupted.status


def _image_command(
    client: Client, vm: dict[str, Any], words: Sequence[str] | None, user: str
) -> tuple[list[str], str]:
    """(what the VM's image runs, given these words; as whom)."""
    image = client.show_image(str(vm["image_id"]))
    argv = [*image.get("entrypoint", []), *(image.get("cmd", []) if words is None else words)]
    if not argv:
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT,
            f"the image {image['name']} does not say what to run",
            hint=f"{vm['name']} runs: banger vm exec {vm['name']} CMD",
        )
    return argv, user or image.get("user", "")


@contextmanager
def _removed_in_the_end(client: Client, vm_id: str) -> Iterator[Lease]:
    """Whatever becomes of what is done meanwhile; the lease tells the daemon that we are there."""
    lease: Lease | None = None
    try:
        lease = Lease(client, vm_id)
        yield lease
    finally:
        with uninterrupted():
            try:
                delete(client, vm_id)
            finally:
                if lease is not None:
                    lease.close()
