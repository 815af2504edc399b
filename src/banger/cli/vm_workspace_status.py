"""`banger vm workspace status`: what of a VM's work is where, in plain words, and what to type next."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from banger.cli.escape import safe
from banger.cli.main import say
from banger.cli.options import json_option, quiet_option
from banger.cli.render import out, print_fields, print_json, print_table
from banger.cli.vm_life import complain
from banger.cli.vm_workspace_out import (
    all_option,
    branch_of,
    changed_files,
    current_work,
    folded,
    ignored_option,
    kept_ago,
    no_keep_option,
    plural,
    short,
    work_argument,
)
from banger.client.client import Client
from banger.errors import BangerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from banger.client import shapes
    from banger.local.gitplaces import Standing

HOW = {"guest-git": "by the guest's git", "guest-files": "from the guest's files", "disk": "from its disk"}
MOST_REFS = 30
"""In the table; --all and --json have them all."""


@click.command(
    "status",
    help="""Say what of a VM's work is where: in the guest, kept on this host, in your repository.

    \b
    banger vm workspace status web              keeps what is new first, then tells
    banger vm workspace status web --no-keep    what is known already, at once

    Works for VMs that run, that are stopped, that do not boot any more, and for the kept work of deleted
    ones. Changes nothing in the guest and nothing in your repository; ends with the next command to type.
    """,
)
@work_argument
@ignored_option
@no_keep_option
@all_option
@json_option
@quiet_option
def status(vm: str, ignored: bool, no_keep: bool, everything: bool, as_json: bool) -> int:
    failed = False
    with Client() as client:
        try:
            work = current_work(client, vm, ignored=ignored, no_keep=no_keep)
        except BangerError as error:
            try:
                work = client.show_work(vm)
            except BangerError:
                raise error from None
            if not kept_ago(work):
                raise
            failed = True
            complain(error)
            say(f"what follows is what was kept {kept_ago(work)}")
    from banger.local.gitplaces import standing
    from banger.local.kepttips import read_kept

    stand: Standing | None = None
    missing = ""
    root = work["workspace"].get("repo_root", "")
    try:
        stand = standing(read_kept(work), root)
    except BangerError as error:
        missing = error.brief
    if as_json:
        print_json({**work, "repository": _as_json(work, stand, missing)})
    else:
        _print(work, stand, missing, everything=everything)
    return 1 if failed else 0


def _as_json(work: shapes.Work, stand: Standing | None, missing: str) -> dict[str, Any]:
    if stand is None:
        return {"path": work["workspace"].get("repo_root", ""), "problem": missing}
    return {
        "path": stand.folder,
        "head": stand.head,
        "moved_on": _moved(work, stand),
        "pulled": sorted(stand.pulled),
        "present": sorted(stand.present),
    }


def _moved(work: shapes.Work, stand: Standing) -> bool:
    return stand.head != work["workspace"].get("head_commit", "")


def _print(work: shapes.Work, stand: Standing | None, missing: str, *, everything: bool) -> None:
    workspace = work["workspace"]
    refs = work.get("refs", [])
    kept = "never"
    if kept_ago(work):
        kept = f"{kept_ago(work)}, {HOW.get(work.get('how', ''), work.get('how', ''))}: "
        kept += plural(len(refs), "ref") if refs else "nothing that is new"
    fields = [
        ("vm", work["vm_name"] + ("" if work.get("vm_exists") else " (deleted; its work is kept)")),
        ("brought", _brought(workspace)),
        ("in the guest", _in_guest(work)),
        ("kept on this host", kept),
        ("in your repository", _in_repository(work, stand, missing)),
    ]
    if stand is not None and _moved(work, stand):
        at = f"{short(stand.head)} now" if stand.head else "no commit now"
        fields.append(
            ("", f"it moved on since: it is at {at}, was at {short(workspace.get('head_commit', ''))}")
        )
    width = max(len(name) for name, _ in fields)
    print_fields([(name.ljust(width), value) for name, value in fields])
    if refs:
        out("")
        _print_refs(refs, stand, everything=everything)
    for note in work.get("notes", []):
        say(f"warning: {safe(note)}")
    out("")
    out(_next(work, stand))


def _print_refs(refs: Sequence[shapes.KeptRef], stand: Standing | None, *, everything: bool) -> None:
    names, more = folded((ref["name"] for ref in refs), everything=everything)
    listed = [ref for ref in refs if ref["name"] in names]
    shown = listed if everything else listed[:MOST_REFS]
    if shown:
        print_table(
            ("REF", "COMMIT", "SUBJECT", "YOURS"),
            [
                [ref["name"], short(ref["commit"]), ref.get("subject", "")[:60], _whose(ref["name"], stand)]
                for ref in shown
            ],
        )
    if len(listed) > len(shown):
        out(f"and {len(listed) - len(shown)} more; --all lists them")
    if more:
        out(more)


def _brought(workspace: shapes.Workspace) -> str:
    branch = workspace.get("current_branch", "")
    where = f"branch {branch} at " if branch else ""
    return f"{workspace.get('repo_root', '')} ({where}{short(workspace.get('head_commit', ''))})"


def _in_guest(work: shapes.Work) -> str:
    if not work.get("kept_at"):
        return ""
    ahead = work.get("changes", {}).get("ahead", 0)
    where = branch_of(work)
    if work.get("branch"):
        where = f"branch {where} at {short(work.get('head', ''))}"
    commits = plural(ahead, "new commit") if ahead else "no new commits"
    files = changed_files(work) or "no changed files"
    return "; ".join(part for part in (where, commits, files) if part)


def _in_repository(work: shapes.Work, stand: Standing | None, missing: str) -> str:
    count = len(work.get("refs", []))
    if stand is None:
        return f"not to be found: {missing}"
    if not count:
        return "nothing is missing"
    if len(stand.pulled) == count:
        return f"all of it, below refs/banger/{work['vm_name']}/"
    if not stand.pulled:
        return "not pulled yet"
    return f"{len(stand.pulled)} of {plural(count, 'ref')} are pulled"


def _whose(name: str, stand: Standing | None) -> str:
    if stand is None:
        return ""
    return "pulled" if name in stand.pulled else "there" if name in stand.present else "missing"


def _next(work: shapes.Work, stand: Standing | None) -> str:
    name = work["vm_name"]
    refs = work.get("refs", [])
    if not refs:
        return "nothing in it is new: there is nothing to pull"
    if stand is None:
        return f"next: banger workspace pull {name} --into DIR (a new clone), or pull {name} PATH"
    if len(stand.pulled) < len(refs):
        return f"next: banger workspace pull {name}"
    if stand.folder != os.path.realpath(os.getcwd()):
        import shlex

        return f"next: git -C {safe(shlex.quote(stand.folder))} log --oneline --glob=refs/banger/{name}"
    return f"next: git log --oneline --glob=refs/banger/{name}"
