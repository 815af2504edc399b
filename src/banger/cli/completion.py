"""`banger completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from banger.cli.render import out

COMPLETE_VARIABLE = "_BANGER_COMPLETE"


@click.command(
    "completion",
    help="""Print the completion script for a shell.

    \b
    bash: banger completion bash > ~/.local/share/bash-completion/completions/banger
    zsh:  banger completion zsh > a file `_banger` in a folder of $fpath
    fish: banger completion fish > ~/.config/fish/completions/banger.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    from banger.cli.main import banger

    kind = get_completion_class(shell)
    assert kind is not None
    out(kind(banger, {}, "banger", COMPLETE_VARIABLE).source())
