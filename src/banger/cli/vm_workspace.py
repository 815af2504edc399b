"""The table of `banger workspace …`, which is `banger vm workspace …`: a repository in a guest, and out."""

from __future__ import annotations

from banger.cli.lazy import LazyGroup

workspace = LazyGroup(
    "workspace",
    help="""A git repository in a VM's guest, and the work done there.

    \b
    banger vm run ~/src/app                 a VM with the repository at /root/repo, and a shell in it
    banger workspace prepare web ~/src/app  the same for a VM that runs already
    banger workspace status web             what of the work there is where
    banger workspace pull web               its commits and files into your repository
    banger workspace export web             all of it as one patch
    """,
    lazy={
        "prepare": ("banger.cli.vm_workspace_in:prepare", "Put a git repository into a VM's guest."),
        "status": ("banger.cli.vm_workspace_status:status", "What of a VM's work is where."),
        "pull": ("banger.cli.vm_workspace_pull:pull", "Bring the work into your repository."),
        "export": ("banger.cli.vm_workspace_out:export", "Print the work as a patch."),
        "list": ("banger.cli.vm_workspace_out:list_command", "List the work that is kept."),
        "rm": ("banger.cli.vm_workspace_out:remove", "Remove kept work of deleted VMs."),
    },
)
