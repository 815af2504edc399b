"""Prints docs/cli.md, made from the click commands. `python tools/docs/cli.py > docs/cli.md`"""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from banger.cli.main import banger

INTRO = """\
# Commands

<!-- Made by tools/docs/cli.py: do not edit. -->

Progress goes to stderr: one live line on a terminal, plain lines otherwise, none with `--quiet`. Errors
go to stderr as `banger: <what failed>`, with a hint on the next line where there is one; `--debug` says
more. Colour is used on a terminal only, and not with `NO_COLOR`.

Exit status: 0; 1 for an error; 2 for wrong usage. `vm exec`, and `vm run` with a command or a shell, exit
with the status of **the guest's command** (128 + n when signal n ended it; 127 when it is not found, 126
when it cannot be executed), and banger's own failures there are 125. A command line with `--` that is
wrong is 125 too.
"""


def commands(command: click.Command, ctx: click.Context) -> Iterator[click.Context]:
    """Every command below this one that does something, with its context."""
    if not isinstance(command, click.Group):
        yield ctx
        return
    for name in command.list_commands(ctx):
        below = command.get_command(ctx, name)
        assert below is not None
        yield from commands(below, below.context_class(below, info_name=name, parent=ctx))


def section(ctx: click.Context) -> Iterator[str]:
    yield f"## `{ctx.command_path}`"
    yield ""
    yield "```"
    help_text = ctx.get_help().replace("\b\n", "")
    yield "\n".join(line.rstrip() for line in help_text.splitlines())
    yield "```"
    yield ""


def document() -> str:
    root = click.Context(banger, info_name="banger", max_content_width=100, terminal_width=100)
    lines = [INTRO, *section(root)]
    for ctx in commands(banger, root):
        ctx.terminal_width = 100
        lines += section(ctx)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    os.environ["NO_COLOR"] = "1"
    print(document(), end="")
