"""`banger vm workspace pull`: kept work into a repository of the user's, and how to use it there."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import click

from banger.cli.escape import safe
from banger.cli.main import say
from banger.cli.options import json_option, quiet_option
from banger.cli.progress import Progress
from banger.cli.render import out, print_json, print_table
from banger.cli.vm_workspace_out import (
    current_work,
    ignored_option,
    no_keep_option,
    plural,
    short,
    work_argument,
)
from banger.client.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from banger.client import shapes
    from banger.local.gitpull import Pulled
    from banger.local.kepttips import Kept

MOST_ROWS = 30
MOST_BRANCHES = 3
"""For which the commands are spelled out."""
_MIB = 1 << 20


@click.command(
    "pull",
    help="""Bring the work in a VM into your repository, commits with the ids they have, as refs/banger/VM/…

    \b
    banger vm workspace pull web                into the repository that was brought
    banger vm workspace pull web ~/src/clone    into another clone of it
    banger vm workspace pull web --into ~/new   into a new clone, where none has the history

    Your files, your index and your branches stay as they are. Commits, branches, tags, stashes and what was
    not committed come; what is there already does not come twice, and nothing that came before is dropped.
    Works for VMs that run, that are stopped, that do not boot any more, and for the kept work of deleted
    ones. Ends with the commands to use what came.
    """,
)
@work_argument
@click.argument("path", required=False, type=click.Path(exists=True, file_okay=False))
@click.option("--into", default="", metavar="DIR", help="Make a new clone of the work there.")
@ignored_option
@no_keep_option
@json_option
@quiet_option
def pull(vm: str, path: str | None, into: str, ignored: bool, no_keep: bool, as_json: bool) -> None:
    if path and into:
        raise click.UsageError("give the repository, or --into for a new one")
    from banger.local import gitclone, gitpull
    from banger.local.kepttips import read_kept

    with Client() as client:
        work = current_work(client, vm, ignored=ignored, no_keep=no_keep)
        kept = read_kept(work)

        def pack(have: Sequence[str]) -> Iterator[bytes]:
            return client.work_pack(work["vm_id"], have)

        with Progress() as progress:

            def on_bytes(count: int) -> None:
                progress.live(f"pulling the work of {kept.vm_name} {count / _MIB:.1f} MiB")

            if into:
                pulled = gitclone.clone(kept, pack, into, on_bytes=on_bytes)
            else:
                where = gitpull.find_repository(kept, path or "", work["workspace"].get("repo_root", ""))
                pulled = gitpull.pull(kept, pack, where, on_bytes=on_bytes)
    if as_json:
        moved = [{"name": m.name, "before": m.before, "after": m.after} for m in pulled.moved]
        print_json(
            {"path": pulled.folder, "prefix": pulled.prefix, "moved": moved, "former": list(pulled.former)}
        )
    else:
        _print(work, kept, pulled, cloned=bool(into))
    for note in work.get("notes", []):
        say(f"warning: {safe(note)}")


def _print(work: shapes.Work, kept: Kept, pulled: Pulled, *, cloned: bool) -> None:
    where = safe(pulled.folder)
    if not kept.tips and not pulled.moved:
        say(f"nothing in {kept.vm_name} is new: there is nothing to pull")
        return
    if not pulled.moved:
        out(f"{where} has all of it already, below {pulled.prefix}")
    else:
        subjects = {ref["name"]: ref.get("subject", "") for ref in work.get("refs", [])}
        came = plural(len(pulled.moved), "ref")
        out(f"{where}: a new clone of the work" if cloned else f"{where}: {came} below {pulled.prefix}")
        rows = [
            [
                moved.name,
                _what(moved.before, moved.after),
                short(moved.after),
                subjects.get(moved.name, "")[:60],
            ]
            for moved in pulled.moved
        ]
        print_table(("REF", "", "COMMIT", "SUBJECT"), rows[:MOST_ROWS])
        if len(rows) > MOST_ROWS:
            out(f"and {len(rows) - MOST_ROWS} more")
    for name in pulled.former[:MOST_ROWS]:
        out(f"what is in nothing newer is kept as {safe(pulled.prefix + name)}")
    steps = advice(kept, pulled, _branches(pulled.folder))
    if steps:
        out("")
        out("Your files, index and branches are as they were. To use it:" if not cloned else "To look at it:")
        if pulled.folder != os.path.realpath(os.getcwd()):
            steps = [("", f"cd {shlex.quote(pulled.folder)}"), *steps]
        for why, command in steps:
            if why:
                out(f"  {why}:")
            out(f"    {safe(command)}")


def _what(before: str, after: str) -> str:
    return "new" if not before else "moved" if after else "gone"


def _branches(folder: str) -> tuple[str, set[str]]:
    from banger.local.gitpull import local_branches

    return local_branches(folder)


def advice(kept: Kept, pulled: Pulled, branches: tuple[str, set[str]]) -> list[tuple[str, str]]:
    """(what it is for, the command), in an order in which they can be typed. branches: the current, all."""
    current, taken = branches
    found: list[tuple[str, str]] = []
    tips = [name for name in kept.tips if name.startswith("heads/") and kept.tips[name] != kept.base]
    own = f"heads/{kept.branch}"
    tips.sort(key=lambda name: (name != own, name))
    if "HEAD" in kept.tips and not kept.branch:
        tips.insert(0, "HEAD")
    for name in tips[:MOST_BRANCHES]:
        ref = shlex.quote(pulled.prefix + name)
        branch = name.removeprefix("heads/") if name != "HEAD" else kept.vm_name
        whose = f"the branch {branch}" if name != "HEAD" else "the detached HEAD"
        found.append((f"what is new on {whose}", f"git log --oneline HEAD..{ref}"))
        if branch == current:
            found.append(("take it into your branch", f"git merge {ref}"))
        free = _free(branch, kept.vm_name, taken)
        found.append(("have it as a branch", f"git switch -c {shlex.quote(free)} {ref}"))
    if "worktree" in kept.tips:
        ref = f"{pulled.prefix}worktree"
        found.append(("what the files there have beside your HEAD", f"git diff HEAD {ref}"))
        found.append(
            ("make your files those (yours are replaced)", f"git restore --source={ref} --worktree .")
        )
    stashes = [name for name in kept.tips if name == "stash" or name.startswith("stash-")]
    for name in stashes[:1]:
        found.append(("what was stashed", f"git stash apply {pulled.prefix}{name}"))
    if not found and kept.tips:
        found.append(("look at it", f"git log --oneline --glob={pulled.prefix[:-1]}"))
    return found


def _free(branch: str, vm_name: str, taken: set[str]) -> str:
    """A name for a new branch: its own, else with the VM's before it."""
    for name in (
        branch,
        f"{vm_name}-{branch}",
        *(f"{vm_name}-{branch}-{number}" for number in range(2, 100)),
    ):
        blocked = any(name.startswith(f"{one}/") or one.startswith(f"{name}/") for one in taken)
        if name not in taken and not blocked:
            return name
    return f"{vm_name}-work"
