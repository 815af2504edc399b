"""Where a command starts in a VM with a workspace, and the warning when the host's repository has moved on.

Imported only where there is a workspace: everybody else's exec does not pay for it. Reads only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from banger.cli import state
from banger.cli.escape import safe
from banger.cli.main import say

if TYPE_CHECKING:
    from banger.client.shapes import Workspace


def default_folder(workspace: Workspace, *, user: str) -> str:
    """The repository's, for root; others cannot enter root's home."""
    return workspace.get("guest_path", "") if user in ("", "root", "0") else ""


def warn_if_moved(workspace: Workspace, name: str) -> None:
    """One line on stderr. One of --from another commit never followed the host's HEAD."""
    before = workspace.get("head_commit", "")
    if state.quiet or not before or workspace.get("base_commit") != before:
        return
    from banger.local.githead import host_moved

    root = workspace.get("repo_root", "")
    head = host_moved(root, before)
    if head and head != before:
        say(
            f"banger: warning: {safe(root)} has moved on from {before[:7]} to {head[:7]}; "
            f"again: banger workspace prepare --replace {safe(name)} {safe(root)}"
        )
