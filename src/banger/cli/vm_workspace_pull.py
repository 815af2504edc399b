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
    all_option,
    current_work,
    folded,
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
@all_option
@json_option
@quiet_option
def pull(
    vm: str, path: str | None, into: str, ignored: bool, no_keep: bool, everything: bool, as_json: bool
) -> int:
    if path and into:
        raise click.UsageError("give the repository, or --into for a new one")
    from banger.local import gitclone, gitplaces, gitpull
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
                where = gitplaces.find_repository(kept, path or "", work["workspace"].get("repo_root", ""))
                pulled = gitpull.pull(kept, pack, where, on_bytes=on_bytes)
    if as_json:
        print_json({**_as_json(pulled), "left_out": list(pulled.left_out)})
    else:
        _print(work, kept, pulled, cloned=bool(into), everything=everything)
    for note in work.get("notes", []):
        say(f"warning: {safe(note)}")
    if not pulled.left_out:
        return 0
    shown = ", ".join(safe(name) for name in pulled.left_out[:MOST_BRANCHES])
    more = len(pulled.left_out) - MOST_BRANCHES
    say(
        f"banger: not pulled, for the commits on which they build are not in {safe(pulled.folder)}: {shown}"
        + (f" and {more} more" if more > 0 else "")
    )
    say(f"  banger workspace pull {kept.vm_name} --into DIR makes a new clone with them")
    return 1


def _as_json(pulled: Pulled) -> dict[str, object]:
    return {
        "path": pulled.folder,
        "prefix": pulled.prefix,
        "moved": [{"name": m.name, "before": m.before, "after": m.after} for m in pulled.moved],
        "former": list(pulled.former),
        "submodules": [_as_json(inner) for inner in pulled.inner],
    }


def _print(work: shapes.Work, kept: Kept, pulled: Pulled, *, cloned: bool, everything: bool) -> None:
    from banger.local.gitplaces import local_branches

    every = [pulled, *pulled.inner]
    if not any(one.moved for one in every):
        if not kept.tips:
            say(f"nothing in {kept.vm_name} is new: there is nothing to pull")
            return
        if not pulled.left_out:
            out(f"{safe(pulled.folder)} has all of it already, below {pulled.prefix}")
    subjects = {ref["commit"]: ref.get("subject", "") for ref in work.get("refs", [])}
    for one in every:
        if one.moved:
            _print_moved(one, subjects, cloned=cloned, everything=everything)
        for name in one.former[:MOST_ROWS]:
            out(f"what is in nothing newer is kept as {safe(one.prefix + name)}")
    steps = advice(kept, pulled, local_branches(pulled.folder))
    if steps:
        out("")
        out("Your files, index and branches are as they were. To use it:" if not cloned else "To look at it:")
        if pulled.folder != os.path.realpath(os.getcwd()):
            steps = [("", f"cd {shlex.quote(pulled.folder)}"), *steps]
        for why, command in steps:
            if why:
                out(f"  {why}:")
            out(f"    {safe(command)}")


def _print_moved(pulled: Pulled, subjects: dict[str, str], *, cloned: bool, everything: bool) -> None:
    came = plural(len(pulled.moved), "ref")
    what = "a new clone of the work" if cloned else f"{came} below {pulled.prefix}"
    out(f"{safe(pulled.folder)}: {what}")
    names, more = folded((moved.name for moved in pulled.moved), everything=everything)
    rows = [
        [moved.name, _what(moved.before, moved.after), short(moved.after), subjects.get(moved.after, "")[:60]]
        for moved in pulled.moved
        if moved.name in names
    ]
    shown = rows if everything else rows[:MOST_ROWS]
    if shown:
        print_table(("REF", "", "COMMIT", "SUBJECT"), shown)
    if len(rows) > len(shown):
        out(f"and {len(rows) - len(shown)} more; --all lists them")
    if more:
        out(more)


def _what(before: str, after: str) -> str:
    return "new" if not before else "moved" if after else "gone"


def advice(kept: Kept, pulled: Pulled, branches: tuple[str, set[str]]) -> list[tuple[str, str]]:
    """(what it is for, the command), in an order in which they can be typed. branches: the current, all."""
    current, taken = branches
    found: list[tuple[str, str]] = []
    here = {name for name in kept.tips if name not in pulled.left_out}
    tips = [name for name in here if name.startswith("heads/") and kept.tips[name] != kept.base]
    own = f"heads/{kept.branch}"
    tips.sort(key=lambda name: (name != own, name))
    if "HEAD" in here and not kept.branch:
        tips.insert(0, "HEAD")
    for number, name in enumerate(tips[:MOST_BRANCHES]):
        ref = shlex.quote(pulled.prefix + name)
        branch = name.removeprefix("heads/") if name != "HEAD" else kept.vm_name
        whose = f"the branch {branch}" if name != "HEAD" else "the detached HEAD"
        free = shlex.quote(_free(branch, kept.vm_name, taken))
        if number:  # what the files are, further down, goes with the first
            found.append((f"have {whose} too", f"git branch {free} {ref}"))
            continue
        found.append((f"what is new on {whose}", f"git log --oneline HEAD..{ref}"))
        if branch == current:
            found.append(("take it into your branch", f"git merge {ref}"))
        found.append(("have it as a branch", f"git switch -c {free} {ref}"))
    if "worktree" in here:
        ref = f"{pulled.prefix}worktree"
        found.append(("what the files there have beside your HEAD", f"git diff HEAD {ref}"))
        found.append(
            ("make your files those (yours are replaced)", f"git restore --source={ref} --worktree .")
        )
    stashes = [name for name in sorted(here) if name == "stash" or name.startswith("stash-")]
    for name in stashes[:1]:
        found.append(("what was stashed", f"git stash apply {pulled.prefix}{name}"))
    if not found and here:
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
