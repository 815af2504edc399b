"""The tools that a brought repository names, for `vm run PATH` and `workspace prepare`: words and progress.

What is decided and done is in local/tooling.py and local/bootstrap.py. Imported only where a repository is
brought. After a crash the guest goes on installing, in a session of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from banger.cli import state
from banger.cli.boot import Interrupted, interruptible
from banger.cli.escape import safe
from banger.cli.progress import Progress
from banger.client.client import Client
from banger.errors import BangerError, ErrorCode
from banger.local.bootstrap import (
    NO_MISE,
    follow_bootstrap,
    start_bootstrap,
    why_failed,
    with_tools,
)
from banger.local.tooling import Tooling, find_tooling, in_background, no_way_out

ROOT = ("", "root", "0")
TAIL_LINES = 20


def tooling_of(client: Client, brought: Sequence[str], *, nat: bool | None) -> Tooling | None:
    """Before a VM is made. WRONG_STATE where it would have no NAT."""
    return find_tooling(brought, client.paths.config_file, nat=nat)


def tooling_for(client: Client, vm: dict[str, Any], brought: Sequence[str]) -> Tooling | None:
    """Before a repository is brought into a VM that runs. WRONG_STATE where it has no NAT."""
    tooling = find_tooling(brought, client.paths.config_file, nat=True)
    if tooling is not None and not vm["spec"]["nat_enabled"]:
        hint = f"banger vm set {vm['name']} --nat gives it one, --no-bootstrap goes without the tools"
        raise no_way_out(tooling.files, hint=hint)
    return tooling


def install_in_new(
    client: Client,
    vm: dict[str, Any],
    tooling: Tooling,
    *,
    progress: Progress,
    shell: bool,
    terminal: bool,
    stays: bool,
) -> None:
    """Into a VM that was made for it. stays: the VM does, when this fails."""
    if in_background(shell=shell, terminal=terminal):
        with interruptible():
            session = start_bootstrap(client, str(vm["id"]), tooling)
        log = f"banger vm session logs -f {vm['name']} {session['name']}"
        what = f"tools: installing those of {tooling.names} in the background"
        progress.line(f"{what}{_without(tooling)}: {log}")
        return
    install(client, vm, tooling, progress=progress, stays=stays)


def install(
    client: Client, vm: dict[str, Any], tooling: Tooling, *, progress: Progress, stays: bool = True
) -> None:
    """Its output is progress. GUEST_ERROR when it fails. Interrupted: the guest goes on with it."""
    vm_id, name = str(vm["id"]), str(vm["name"])
    tail: list[str] = []

    def tell(line: str) -> None:
        tail.append(safe(line))
        del tail[:-TAIL_LINES]
        progress.line(safe(line))

    progress.line(f"tools: installing those of {tooling.names}{_without(tooling)}")
    log = f"banger vm session logs {name} bootstrap"
    try:
        with interruptible():
            session = start_bootstrap(client, vm_id, tooling)
            log = f"banger vm session logs {name} {session['name']}"
            session = follow_bootstrap(client, vm_id, session, tell=tell)
    except Interrupted:
        if stays:
            progress.line(f"interrupted: {name} runs, and goes on with its tools: {log}", always=True)
        raise
    why = why_failed(session)
    if not why:
        return
    hints = [f"{name} runs: {log}"] if stays else ["without --rm the VM stays to be looked at"]
    if session.get("exit_code") == NO_MISE:
        hints.insert(
            0, f"set mise_url in [tooling] of {safe(tooling.config_file)}, or take an image with mise"
        )
    raise BangerError(
        ErrorCode.GUEST_ERROR,
        f"the repository's tools could not be installed in {name}: {safe(why)}",
        details="\n".join(tail) if state.quiet else None,
        hint="; ".join(hints),
        data={"vm": vm_id, "session": session["name"]},
    )


def command_with_tools(argv: Sequence[str], *, user: str) -> list[str]:
    """They are root's."""
    return with_tools(argv) if user in ROOT else list(argv)


def _without(tooling: Tooling) -> str:
    return "" if tooling.url else "; mise_url is not set, so the image must have mise"
