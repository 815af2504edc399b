"""`banger vm workspace export`, `list` and `rm`, and what they share with `status` and `pull`.

All of them tell of what banger keeps on the host; that of a VM which is there is brought up to date first.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from banger.cli.main import say
from banger.cli.options import BadValue, json_option, quiet_option
from banger.cli.progress import Progress
from banger.cli.render import age, is_terminal, out, print_json, print_table
from banger.cli.vm_life import complain
from banger.client.client import Client
from banger.errors import BangerError, ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from banger.client import shapes

COLUMNS = ("NAME", "REPOSITORY", "BRANCH", "COMMITS", "FILES", "KEPT", "VM")
SHOWN_COMMIT = 12
OLDER = "old/"
_HEX = re.compile(r"[0-9a-f]{4,64}")


def complete_work(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """VMs, and those that are gone and left work; nothing, and silently, when the daemon is down."""
    try:
        with Client(autostart=False, version="") as client:
            names = {vm["name"] for vm in client.list_vms()} | {w["vm_name"] for w in client.list_work()}
    except BangerError:
        return []
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


work_argument = click.argument("vm", metavar="VM", shell_complete=complete_work)
no_keep_option = click.option(
    "--no-keep", is_flag=True, help="What was kept last, without asking the guest for what is new."
)
all_option = click.option(
    "--all", "everything", is_flag=True, help="List the older states (old/…) one by one."
)
ignored_option = click.option("--ignored", is_flag=True, help="With the files that git ignores.")


def current_work(client: Client, vm: str, *, ignored: bool, no_keep: bool) -> shapes.Work:
    """What is kept of the VM's work, brought up to date where the VM is there. Raises what keeping raised."""
    known = client.show_work(vm) if no_keep or not _is_there(client, vm) else None
    if known is not None:
        return known
    try:
        with Progress() as progress:
            kept: Any = client.keep_work(vm, ignored=ignored).wait(progress)
    except BangerError as error:
        raise _with_way_out(client, vm, error) from error
    work: shapes.Work = kept
    return work


def _is_there(client: Client, vm: str) -> bool:
    try:
        client.show_vm(vm)
    except BangerError as error:
        if error.code is ErrorCode.NOT_FOUND:
            return False
        raise
    return True


def _with_way_out(client: Client, vm: str, error: BangerError) -> BangerError:
    """The same error; where something was kept before, its hint says how to have that."""
    try:
        before = client.show_work(vm)
    except BangerError:
        return error
    kept = kept_ago(before)
    if not kept:
        return error
    words = click.get_current_context().command_path
    return BangerError(
        error.code,
        error.brief,
        details=error.details,
        data=error.data,
        hint=f"what was kept {kept} is there: {words} --no-keep {before['vm_name']}",
    )


def folded(names: Iterable[str], *, everything: bool) -> tuple[set[str], str]:
    """Names of refs that are listed, and the line for those that are not: a round leaves an older state."""
    given = set(names)
    older = set() if everything else {name for name in given if name.startswith(OLDER)}
    if not older:
        return given, ""
    them = "it" if len(older) == 1 else "them"
    count = plural(len(older), "older state")
    return given - older, f"… and {count} ({OLDER}…); --all lists {them}"


def short(commit: str) -> str:
    return commit[:SHOWN_COMMIT]


def kept_ago(work: shapes.Work) -> str:
    """`5 minutes ago`; "" for never."""
    moment = work.get("kept_at", "")
    return age(moment) if moment else ""


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def changed_files(work: shapes.Work) -> str:
    """`1 file staged, 2 not staged`; "" when there is none."""
    changes = work.get("changes", {})
    kinds = [
        (changes.get("staged", 0), "staged"),
        (changes.get("unstaged", 0), "not staged"),
        (changes.get("untracked", 0), "untracked"),
        (changes.get("conflicts", 0), "in conflict"),
    ]
    parts = [f"{count} {kind}" for count, kind in kinds if count]
    if not parts:
        return ""
    first, _, rest = parts[0].partition(" ")
    return ", ".join([f"{plural(int(first), 'file')} {rest}", *parts[1:]])


def branch_of(work: shapes.Work) -> str:
    head = work.get("head", "")
    return work.get("branch", "") or (f"detached at {short(head)}" if head else "")


@click.command(
    "export",
    help="""Print a patch with everything that was changed in a VM's workspace, for `git apply`.

    \b
    banger vm workspace export web | git apply         onto the files as they were brought
    banger vm workspace export web -o web.patch        whole, or not at all
    banger vm workspace export web --base-commit HEAD~2

    Commits, staged, unstaged and untracked files, as one difference of files; binary ones too. It begins at
    the files that banger brought, changes of yours included, or at --base-commit. Works for VMs that run,
    that are stopped, that do not boot any more, and for the kept work of deleted ones. `pull` brings commits
    as they are instead.
    """,
)
@work_argument
@click.option("--base-commit", default="", metavar="COMMIT", help="Where the patch begins.")
@click.option(
    "-o",
    "--output",
    default="",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Instead of standard output.",
)
@ignored_option
@no_keep_option
@quiet_option
def export(vm: str, base_commit: str, output: str, ignored: bool, no_keep: bool) -> None:
    with Client() as client:
        work = current_work(client, vm, ignored=ignored, no_keep=no_keep)
        base = _full_commit(work, base_commit)
        pieces = _patch(client, work, base)
        if output and output != "-":
            from banger.local.wholefile import write_whole

            count = write_whole(output, pieces)
        else:
            count = _print_patch(pieces)
    for note in work.get("notes", []):
        say(f"warning: {_one_line(note)}")
    if not count:
        since = f"the commit {short(base)}" if base else "what was brought"
        say(f"nothing in {work['vm_name']} differs from {since}: the patch is empty")


def _patch(client: Client, work: shapes.Work, base: str) -> Iterator[bytes]:
    try:
        yield from client.work_patch(work["vm_id"], base=base)
    except BangerError as error:
        if error.code is not ErrorCode.NOT_FOUND or not base:
            raise
        from banger.local.gitpatch import patch_from
        from banger.local.gitplaces import find_repository
        from banger.local.kepttips import read_kept

        # older than what was brought: only the user's own repository has that
        kept = read_kept(work)
        where = find_repository(kept, "", work["workspace"].get("repo_root", ""))
        found = patch_from(kept, lambda have: client.work_pack(work["vm_id"], have), where, base=base)
        if found is None:
            raise
        yield found


def _one_line(text: str) -> str:
    from banger.cli.escape import safe

    return safe(text)


def _full_commit(work: shapes.Work, text: str) -> str:
    """A commit as the user's repository knows it, or an id in full that only the guest's may have."""
    if not text:
        return ""
    if _HEX.fullmatch(text) and len(text) in (40, 64):
        return text
    from banger.local.gitplaces import resolve_commit

    found = resolve_commit(work["workspace"].get("repo_root", ""), text)
    if not found:
        raise BadValue(
            f"base-commit: {text[:80]!a} is no commit of the repository that was brought",
            "give an id, as `git rev-parse COMMIT` prints it",
        )
    return found


def _print_patch(pieces: Iterator[bytes]) -> int:
    """Bytes printed. Only once all of it is there: `git apply` at the other end takes what it gets."""
    import shutil
    import tempfile

    with tempfile.TemporaryFile() as spool:
        for piece in pieces:
            spool.write(piece)
        count = spool.tell()
        spool.seek(0)
        if is_terminal(1):
            from banger.cli.escape import LogEscaper

            escaper = LogEscaper()
            while piece := spool.read(1 << 16):
                sys.stdout.write(escaper.feed(piece))
            sys.stdout.write(escaper.feed(b"", final=True))
        else:
            sys.stdout.flush()
            shutil.copyfileobj(spool, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    return count


@click.command(
    "list",
    help="""List the work that banger keeps, of the VMs that are there and of deleted ones.

    \b
    banger vm workspace list
    banger vm workspace pull NAME     brings what is in it into your repository
    """,
)
@click.option("-q", "ids", is_flag=True, help="The VMs' ids only.")
@json_option
def list_command(ids: bool, as_json: bool) -> None:
    with Client() as client:
        works = client.list_work()
    if as_json:
        print_json(works)
    elif ids:
        for work in works:
            out(work["vm_id"])
    else:
        print_table(COLUMNS, [_row(work) for work in works])


def _row(work: shapes.Work) -> list[str]:
    changes = work.get("changes", {})
    files = changes.get("staged", 0) + changes.get("unstaged", 0)
    files += changes.get("untracked", 0) + changes.get("conflicts", 0)
    return [
        work["vm_name"],
        work["workspace"].get("repo_name", ""),
        branch_of(work),
        str(changes.get("ahead", 0)),
        str(files),
        kept_ago(work) or "never",
        "there" if work.get("vm_exists") else "deleted",
    ]


@click.command(
    "rm",
    help="""Remove kept work of deleted VMs for good, after a question.

    \b
    banger vm workspace rm web
    banger vm workspace rm -f $(banger vm workspace list -q)

    What was pulled stays in your repository. The work of a VM that is there goes with the VM.
    """,
)
@click.argument("vms", metavar="VM...", nargs=-1, required=True, shell_complete=complete_work)
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@json_option
def remove(vms: tuple[str, ...], force: bool, as_json: bool) -> int:
    failed = False
    found: dict[str, shapes.Work] = {}
    removed: list[shapes.Work] = []
    with Client() as client:
        for reference in vms:
            try:
                work = client.show_work(reference)
                found[work["vm_id"]] = work
            except BangerError as error:
                failed = True
                complain(error)
        if found and not force and not _agreed(list(found.values()), as_json=as_json):
            return 1
        for vm_id, work in found.items():
            try:
                removed.append(client.remove_work(vm_id))
            except BangerError as error:
                failed = True
                complain(error)
                continue
            if not as_json:
                out(work["vm_name"])
    if as_json:
        print_json(removed)
    return 1 if failed else 0


def _agreed(works: list[shapes.Work], *, as_json: bool) -> bool:
    what = f"the work of {plural(len(works), 'VM')}"
    if not is_terminal(0) or as_json:
        raise click.UsageError(f"{what} would be lost, and there is nobody to ask: give -f")
    print_table(COLUMNS, [_row(work) for work in works])
    return click.confirm(f"Remove {what} for good?", err=True)
