"""A repository's way into a guest, for `vm run PATH`, `workspace prepare` and `exec --auto-prepare`.

The user's repository is examined before anything is made; the tree is in the guest as a whole, or not at all;
the daemon is told of it last. Nothing is left after a crash but a VM without the repository.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from banger.cli.boot import Interrupted, interruptible, uninterrupted
from banger.cli.escape import safe
from banger.cli.options import MODES
from banger.cli.progress import Progress
from banger.cli.render import out, print_json
from banger.client.client import Client
from banger.errors import BangerError, ErrorCode

if TYPE_CHECKING:
    from banger.local.gitplan import Plan
    from banger.local.gitsource import Source
    from banger.local.gittravel import Travel

GUEST_FOLDER = "/root"
SHOWN_NAMES = 3
SHOWN_EVERY_S = 0.2
MAX_REFS = 10_000
"""As the daemon takes them; what it is not told of counts as the guest's own, which loses nothing."""
MAX_REF_BYTES = 900_000


class Wanted(NamedTuple):
    """What the options say."""

    path: str
    mode: str = MODES[0]
    branch: str = ""
    from_ref: str = ""
    readonly: bool = False
    include_untracked: bool = False


def look_at(wanted: Wanted) -> Source:
    """Everything that is refused is refused here, before anything is made."""
    from banger.local.gitsource import examine

    if "/" not in wanted.path and not os.path.lexists(wanted.path):
        raise BangerError(
            ErrorCode.NOT_FOUND,
            f"there is no folder {wanted.path!a} here",
            hint="PATH is a git repository's folder; a command goes behind --",
        )
    return examine(
        wanted.path,
        mode=wanted.mode,
        branch=wanted.branch,
        from_ref=wanted.from_ref,
        include_untracked=wanted.include_untracked,
        readonly=wanted.readonly,
    )


def show_plan(source: Source, progress: Progress, *, as_json: bool = False, bootstrap: bool = False) -> None:
    """What would travel: names on stdout, the sum and what stays on stderr."""
    from banger.local.gitplan import plan
    from banger.local.tooling import tool_files

    planned = plan(source)
    tools = tool_files(planned.files) if bootstrap else ()
    if as_json:
        print_json(
            {
                "repo_root": source.root,
                "mode": source.mode,
                "base_commit": source.base_commit,
                "branch_name": source.branch_name,
                "files": planned.files,
                "bytes": planned.bytes,
                "untracked_left": planned.untracked_left,
                "modified_left": planned.modified_left,
                "submodules_left": planned.submodules_left,
                "notes": planned.notes,
                "bootstrap": tools,
            }
        )
        return
    for name in planned.files:
        out(safe(name))
    progress.line(f"would travel: {_sum(planned)} {_where(source)}")
    say_left(planned, progress)
    if tools:
        progress.line(f"would be bootstrapped: mise install, for {', '.join(tools)}; needs --nat")


@contextmanager
def made_ready(source: Source, progress: Progress) -> Iterator[Travel]:
    """The repository packed for its journey; a signal during that raises Interrupted."""
    from banger.local.gittravel import open_travel

    with interruptible():
        opened = open_travel(source, tell=lambda text: progress.live(safe(text)))
        travel = opened.__enter__()
    try:
        yield travel
    finally:
        opened.__exit__(None, None, None)


def bring_in(
    client: Client,
    reference: str,
    travel: Travel,
    *,
    progress: Progress,
    replace: bool = False,
    aside: str = "",
) -> dict[str, Any]:
    """The tree into the guest, the record to the daemon; the VM. replace, aside: see copy.unpack_from."""
    from banger.client.copy import unpack_from

    meter = _Meter(progress)
    unpack_from(client, reference, travel.write_tar, GUEST_FOLDER, replace=replace, aside=aside, tick=meter)
    with uninterrupted():  # what is in the guest now has to be known
        vm = client.set_workspace(reference, **travel.workspace, refs=_bounded(travel.refs))
    progress.line(f"repository: {_sum(travel.plan)}")
    say_left(travel.plan, progress)
    return dict(vm)


def bring_into_new(
    client: Client, vm: dict[str, Any], travel: Travel, *, progress: Progress, stays: bool
) -> None:
    """Into a VM that was made for it. What fails says what there is now. stays: the VM does, all the same."""
    name, path = str(vm["name"]), str(travel.workspace["source_path"])
    try:
        with interruptible():
            bring_in(client, str(vm["id"]), travel, progress=progress)
    except Interrupted:
        if stays:
            progress.line(f"interrupted: {name} runs, without the repository", always=True)
        raise
    except BangerError as error:
        again = f"banger workspace prepare {name} {path}"
        if error.code is ErrorCode.NO_SPACE:
            again = f"banger vm set {name} --disk-size SIZE, then: {again}"
        raise BangerError(
            error.code,
            f"the repository could not be brought into {name}: {error.brief}",
            details=error.details,
            hint=f"{name} runs without it: {again}" if stays else error.hint,
            data=error.data,
        ) from error


def say_left(plan: Plan, progress: Progress) -> None:
    """What stays home, a line each."""
    if plan.untracked_left:
        what = f"{_names(plan.untracked_left, 'untracked file')}"
        progress.line(f"left behind: {what}; --include-untracked brings them")
    if plan.modified_left:
        progress.line(f"left behind: local changes to {_names(plan.modified_left, 'file')}")
    if plan.submodules_left:
        what = _names(plan.submodules_left, "submodule")
        progress.line(f"left behind: {what} not checked out here; git submodule update --init does that")
    for note in plan.notes:
        progress.line(f"note: {safe(note)}")


def amount(count: int) -> str:
    """`4.5 MiB`."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _sum(plan: Plan) -> str:
    return f"{_counted(len(plan.files), 'file')}, {amount(plan.bytes)}"


def _where(source: Source) -> str:
    on = f"branch {source.branch_name}" if source.branch_name else "no branch"
    return f"of {safe(source.root)} at {source.base_commit[:12]}, {safe(on)}, {source.mode}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _names(names: Sequence[str], what: str) -> str:
    more = ", …" if len(names) > SHOWN_NAMES else ""
    return f"{_counted(len(names), what)} ({', '.join(safe(name) for name in names[:SHOWN_NAMES])}{more})"


def _bounded(refs: dict[str, str]) -> dict[str, str]:
    """What one request may carry, the shortest names first: HEAD and branches before submodules' tags."""
    kept: dict[str, str] = {}
    size = 0
    for name in sorted(refs, key=lambda name: (len(name), name)):
        size += len(name.encode("utf-8", "replace")) + len(refs[name]) + 8
        if len(kept) == MAX_REFS or size > MAX_REF_BYTES:
            break
        kept[name] = refs[name]
    return kept


class _Meter:
    """How much went over, on the live line."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown = time.monotonic()

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        if now - self._shown >= SHOWN_EVERY_S:
            self._shown = now
            self._progress.live(f"bringing the repository in: {amount(count)}")
