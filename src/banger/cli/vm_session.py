"""The table of `banger vm session …`, and what its commands share: arguments and completion."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from banger.cli.lazy import LazyGroup
from banger.cli.options import complete_vm
from banger.errors import BangerError

session = LazyGroup(
    "session",
    help="""Long-lived commands in a VM: they outlive the terminal, the CLI and the daemon.

    \b
    banger vm session start web --name build -- make -j4
    banger vm session logs -f web build
    banger vm session attach web build          ctrl-p ctrl-q leaves it running
    """,
    lazy={
        "start": ("banger.cli.vm_session_start:start", "Start a command; print its id."),
        "list": ("banger.cli.vm_session_list:list_command", "List a VM's sessions."),
        "show": ("banger.cli.vm_session_list:show", "All about one session."),
        "logs": ("banger.cli.vm_session_stream:logs", "What a session has said."),
        "attach": ("banger.cli.vm_session_stream:attach", "See what it says, type what it reads."),
        "send": ("banger.cli.vm_session_stream:send", "Write to a session's stdin."),
        "signal": ("banger.cli.vm_session_life:signal", "Signal sessions' commands."),
        "stop": ("banger.cli.vm_session_life:stop", "End sessions: TERM, then KILL."),
        "rm": ("banger.cli.vm_session_life:remove", "Remove sessions and their logs."),
    },
)


def complete_session(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names in the VM that was typed; nothing, and silently, when daemon or guest are down."""
    from banger.client.client import Client
    from banger.client.sessions import Sessions

    try:
        with Client(autostart=False, version="") as client:
            return [
                CompletionItem(known["name"])
                for known in Sessions(client, str(ctx.params.get("vm") or "")).list()
                if known["name"].startswith(incomplete)
            ]
    except BangerError:
        return []


# eager: completion of a session's name needs to know the VM's
vm_of_session = click.argument("vm", metavar="VM", shell_complete=complete_vm, is_eager=True)
session_argument = click.argument("reference", metavar="SESSION", shell_complete=complete_session)
sessions_argument = click.argument(
    "references", metavar="SESSION...", nargs=-1, required=True, shell_complete=complete_session
)
