"""Writes docs/man/*.1, made from the click commands. `python tools/docs/man.py`, `--check`: which are stale.

One page a group: banger(1), banger-vm(1), banger-vm-session(1) and so on, each command a part of its
group's page. pyproject.toml installs them with the wheel, below share/man/man1.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from banger.cli.main import banger

FOLDER = Path(__file__).parents[2] / "docs" / "man"
SPECIAL = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti", '"': "\\(dq"}
END = """\
.SH EXIT STATUS
0; 1 for an error; 2 for wrong usage.
\\fBbanger vm exec\\fR, and \\fBbanger vm run\\fR with a command or a shell, exit with the status of the
guest\\(aqs command, and with 125 for banger\\(aqs own failures.
.SH ENVIRONMENT
.TP
.B BANGER_HOME
A folder for everything of one instance: configuration, state, cache, sockets.
.TP
.B NO_COLOR
No colour, also on a terminal.
.TP
.B BANGER_DEBUG
As \\fB\\-\\-debug\\fR: say more about failures.
"""


def escape(text: str) -> str:
    """Any text as roff's, on lines that are no requests."""
    marked = "".join(SPECIAL.get(one, one if one.isascii() else f"\\[u{ord(one):04X}]") for one in text)
    return "\n".join("\\&" + line if line[:1] == "." else line for line in marked.split("\n"))


def prose(help_text: str) -> Iterator[str]:
    r"""A docstring's paragraphs; those behind \b keep their lines, as click shows them."""
    text = inspect.cleandoc(help_text)
    for paragraph in text.replace("\b\n", "\n\b\n").split("\n\n"):
        as_typed = paragraph.lstrip("\n").startswith("\b")
        paragraph = paragraph.replace("\b\n", "").strip("\n")
        if not paragraph.strip():
            continue
        if as_typed:
            yield f".PP\n.RS 4\n.EX\n{escape(paragraph)}\n.EE\n.RE"
        else:
            yield f".PP\n{escape(' '.join(paragraph.split()))}"


def usage(ctx: click.Context) -> str:
    pieces = " ".join(ctx.command.collect_usage_pieces(ctx))
    return f".PP\n\\fB{escape(ctx.command_path)}\\fR {escape(pieces)}"


def options(ctx: click.Context) -> Iterator[str]:
    for parameter in ctx.command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None and isinstance(parameter, click.Option):
            said = escape(" ".join(record[1].split())) or "\\&"
            yield f".TP\n\\fB{escape(record[0])}\\fR\n{said}"


def below(group: click.Group, ctx: click.Context) -> Iterator[click.Context]:
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        yield click.Context(command, info_name=name, parent=ctx)


def groups(ctx: click.Context) -> Iterator[click.Context]:
    """This group, and all below it."""
    assert isinstance(ctx.command, click.Group)
    yield ctx
    for one in below(ctx.command, ctx):
        if isinstance(one.command, click.Group):
            yield from groups(one)


def page_name(ctx: click.Context) -> str:
    return ctx.command_path.replace(" ", "-")


def page(ctx: click.Context, pages: list[str]) -> str:
    """A group's page; pages: the names of all."""
    group = ctx.command
    assert isinstance(group, click.Group)
    name = page_name(ctx)
    brief = " ".join(inspect.cleandoc(group.help or "").split("\n\n")[0].split()).rstrip(".")
    parts = [
        '.\\" Made by tools/docs/man.py: do not edit.',
        f'.TH {escape(name.upper())} 1 "" banger banger\n.ad l\n.nh',
        f".SH NAME\n{escape(name)} \\- {escape(brief)}",
        ".SH SYNOPSIS",
        f"\\fB{escape(ctx.command_path)}\\fR {escape(' '.join(group.collect_usage_pieces(ctx)))}",
        ".SH DESCRIPTION",
        *prose(group.help or ""),
        ".SH OPTIONS",
        *options(ctx),
        ".SH COMMANDS",
    ]
    for one in below(group, ctx):
        if isinstance(one.command, click.Group):
            parts.append(f".SS {escape(one.command_path)} ...\nSee \\fB{escape(page_name(one))}\\fR(1).")
            continue
        parts += [
            f".SS {escape(one.command_path)}",
            usage(one),
            *prose(one.command.help or ""),
            *options(one),
        ]
    others = ",\n".join(f"\\fB{escape(other)}\\fR(1)" for other in pages if other != name)
    return "\n".join([*parts, f"{END}.SH SEE ALSO\n{others}\n"])


def documents() -> dict[str, str]:
    """File name → page."""
    found = list(groups(click.Context(banger, info_name="banger", **banger.context_settings)))
    pages = sorted({page_name(ctx) for ctx in found})
    return {f"{page_name(ctx)}.1": page(ctx, pages) for ctx in found}


def stale(made: dict[str, str]) -> list[str]:
    """Names of files that are not as they would be made."""
    names = {path.name for path in FOLDER.glob("*.1")} | set(made)
    return sorted(
        name
        for name in names
        if name not in made or not (FOLDER / name).exists() or (FOLDER / name).read_text() != made[name]
    )


def main(argv: list[str]) -> int:
    os.environ["NO_COLOR"] = "1"
    made = documents()
    changed = stale(made)
    if argv == ["--check"]:
        print("\n".join(changed))
        return 1 if changed else 0
    FOLDER.mkdir(exist_ok=True)
    for name in changed:
        if name in made:
            (FOLDER / name).write_text(made[name])
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
