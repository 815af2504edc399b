"""`banger workspace prepare`, and what `exec --auto-prepare` does of it.

Preparing again: the work that is in the guest is kept by the daemon first; then the new tree takes the place
of the old one in one step. After a crash before that the old one is there, whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from banger.cli.boot import Interrupted, interruptible
from banger.cli.bringing import Wanted, bring_in, look_at, made_ready, show_plan
from banger.cli.escape import safe
from banger.cli.options import (
    MODES,
    complete_folder,
    complete_vm,
    json_option,
    short_quiet_option,
    travel_options,
)
from banger.cli.progress import Progress
from banger.cli.render import out, print_json
from banger.client.client import Client
from banger.errors import BangerError, ErrorCode

if TYPE_CHECKING:
    from banger.local.gitsource import Source

GUEST_PATH = "/root/repo"


@click.command(
    "prepare",
    help="""Put the git repository at PATH (default: here) into a running VM, at /root/repo.

    \b
    banger workspace prepare web                        the repository of this folder
    banger workspace prepare web ~/src/app --dry-run    what would travel
    banger workspace prepare web --include-untracked    untracked files too; ignored ones never
    banger workspace prepare web --branch fix --from v1.2
    banger workspace prepare web --replace              again: what is there is kept, and replaced

    Your repository is only read; its hooks and filters are not run. exec, shell and sessions start in
    /root/repo from then on. The guest needs no git for it.
    """,
)
@click.argument("vm", metavar="VM", shell_complete=complete_vm)
@click.argument("path", metavar="[PATH]", default=".", shell_complete=complete_folder)
@travel_options
@click.option(
    "--replace", is_flag=True, help="Where there is one already: keep the work in it, and take its place."
)
@json_option
@short_quiet_option
def prepare(
    vm: str,
    path: str,
    mode: str | None,
    branch: str,
    from_ref: str,
    readonly: bool,
    include_untracked: bool,
    dry_run: bool,
    no_bootstrap: bool,
    replace: bool,
    as_json: bool,
) -> int:
    wanted = Wanted(path, mode or MODES[0], branch, from_ref, readonly, include_untracked)
    source = look_at(wanted)
    with Progress() as progress:
        if dry_run:
            show_plan(source, progress, as_json=as_json, bootstrap=not no_bootstrap)
            return 0
        try:
            with Client() as client:
                prepared = put_in(
                    client, vm, source, progress=progress, replace=replace, bootstrap=not no_bootstrap
                )
        except Interrupted as interrupted:
            return interrupted.status
    if as_json:
        print_json(prepared.get("workspace", {}))
    else:
        out(f"{prepared['name']}:{GUEST_PATH}")
    return 0


def put_in(
    client: Client,
    reference: str,
    source: Source,
    *,
    progress: Progress,
    replace: bool,
    kept: bool = False,
    bootstrap: bool = False,
) -> dict[str, Any]:
    """The repository into a VM that runs; the VM afterwards. ALREADY_EXISTS where one is, without replace.

    kept: the work in it was kept just now, whole. bootstrap: the tools that it names are installed, too.
    """
    from banger.client.copy import is_there
    from banger.local.gittravel import aside_name

    vm: dict[str, Any] = dict(client.show_vm(reference))
    vm_id, name = str(vm["id"]), str(vm["name"])
    aside = ""
    there = is_there(client, vm_id, GUEST_PATH)
    if there and not replace:
        raise BangerError(
            ErrorCode.ALREADY_EXISTS,
            f"{name} has {_what(vm)} already",
            hint=f"--replace {_what_happens(vm)}: {_again(name, source.path)}",
        )
    with made_ready(source, progress) as travel:
        tooling = None
        if bootstrap:
            from banger.cli.tooling import tooling_for

            tooling = tooling_for(client, vm, travel.plan.files)
        if there and not kept:
            aside = aside_name(keep(client, vm_id, progress) if vm.get("workspace") else None)
        with interruptible():
            prepared = bring_in(client, vm_id, travel, progress=progress, replace=there, aside=aside)
        if aside:
            progress.line(f"what was at {GUEST_PATH} is at /root/{aside} now")
        if tooling is not None:
            from banger.cli.tooling import install

            install(client, vm, tooling, progress=progress)
        return prepared


def keep(client: Client, reference: str, progress: Progress) -> dict[str, Any]:
    """The work in the guest into the daemon's store; what there is of it. WORK_NOT_KEPT."""
    work = client.keep_work(reference).wait(progress)
    if has_work(work):
        progress.line(f"work of {work['vm_name']} is kept: banger workspace pull {work['vm_name']}")
    return work


def has_work(work: dict[str, Any]) -> bool:
    """Whether there is anything in the guest now that was not brought; what was kept before is safe."""
    names = [str(ref.get("name", "")) for ref in work.get("refs", ())]
    new = any(not name.startswith("old/") for name in names) or (bool(work.get("changed")) and not names)
    return new or bool(work.get("files_only"))


def prepare_again(client: Client, reference: str) -> None:
    """When the host's repository has moved on since, and nothing has changed in the guest."""
    from banger.local.githead import host_moved

    vm: dict[str, Any] = dict(client.show_vm(reference))
    name, before = str(vm["name"]), vm.get("workspace")
    if not before:
        raise BangerError(
            ErrorCode.WRONG_STATE,
            f"{name} has no workspace that could be prepared again",
            hint=f"banger workspace prepare {name} PATH",
        )
    root = str(before.get("repo_root", ""))
    head = host_moved(root, str(before.get("head_commit", "")))
    if head == before.get("head_commit"):
        return
    again = _again(name, root)
    if not head:
        raise BangerError(
            ErrorCode.NOT_FOUND,
            f"the repository of {name} is not there any more: {safe(root)}",
            hint="leave --auto-prepare out to go on with what is in the guest",
        )
    if before.get("base_commit") != before.get("head_commit"):
        raise BangerError(
            ErrorCode.WRONG_STATE,
            f"the workspace of {name} was prepared with --from, and from what now only you know",
            hint=f"{again} --branch {safe(str(before.get('branch_name', '')))} --from REF",
        )
    with Progress() as progress:
        if has_work(client.keep_work(reference).wait(progress)):
            raise BangerError(
                ErrorCode.WRONG_STATE,
                f"{safe(root)} has moved on, and there is work in {name} that would be replaced",
                hint=f"banger workspace pull {name}, then: {again}",
            )
        branch = str(before.get("branch_name", ""))
        wanted = Wanted(
            root,
            str(before.get("mode", "")),
            "" if branch == before.get("current_branch", "") else branch,
            readonly=bool(before.get("readonly")),
            include_untracked=bool(before.get("include_untracked")),
        )
        put_in(client, str(vm["id"]), look_at(wanted), progress=progress, replace=True, kept=True)


def _what_happens(vm: dict[str, Any]) -> str:
    return "keeps the work in it first" if vm.get("workspace") else "puts it aside"


def _again(name: str, path: str) -> str:
    return f"banger workspace prepare --replace {name} {safe(path)}"


def _what(vm: dict[str, Any]) -> str:
    repository = (vm.get("workspace") or {}).get("repo_name", "")
    return f"{safe(repository)} at {GUEST_PATH}" if repository else f"a {GUEST_PATH}"
