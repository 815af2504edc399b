"""The table of `banger workspace …`, which is `banger vm workspace …`: a repository in a guest, and out."""

from __future__ import annotations

from banger.cli.lazy import LazyGroup

workspace = LazyGroup(
    "workspace",
    help="""A git repository in a VM's guest, and the work done there.

    \b
    banger vm run ~/src/app                 a VM with the repository at /root/repo, and a shell in it
    banger workspace prepare web ~/src/app  the same for a VM that runs already
    """,
    lazy={
        "prepare": ("banger.cli.vm_workspace_in:prepare", "Put a git repository into a VM's guest."),
    },
)
