"""Every banger command in README.md and docs/: that command exists, and takes those options and arguments."""

from __future__ import annotations

import click
import pytest

from banger.cli import state
from banger.cli.main import banger
from banger.errors import BangerError
from tests.docpages import Line, banger_commands, code_lines, named_commands, pages


@pytest.fixture(autouse=True)
def kept_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that set the command line's globals do so for a test only."""
    for name in ("quiet", "debug", "failure_status"):
        monkeypatch.setattr(state, name, getattr(state, name))


def fault(words: list[str]) -> str:
    """What is wrong with a command's words; nothing of it is run."""
    if words and words[-1] == "…":
        words = words[:-1]
    words = ["/" if word.startswith("~/") else word for word in words]  # folders that need to exist
    command: click.Command = banger
    ctx: click.Context | None = None
    name = "banger"
    try:
        while True:
            ctx = command.make_context(name, list(words), parent=ctx)
            if not isinstance(command, click.Group):
                return ""
            rest = [*getattr(ctx, "_protected_args", []), *ctx.args]
            if not rest:  # a group's name
                return ""
            found, below, words = command.resolve_command(ctx, rest)
            assert below is not None
            command, name = below, str(found)
    except click.exceptions.Exit:  # --help
        return ""
    except (click.UsageError, BangerError) as error:
        return str(error) or type(error).__name__


COMMANDS = [line for page in pages() for line in code_lines(page)]


def test_every_command_of_the_pages_exists() -> None:
    wrong: list[str] = []
    found = 0
    for line in COMMANDS:
        try:
            commands = list(banger_commands(line))
        except ValueError as error:
            if line.text.startswith(("banger ", "sudo ", ".venv/")):  # otherwise prose in a block
                wrong.append(f"{line}\n    {error}")
            continue
        found += len(commands)
        wrong += [f"{line}\n    {said}" for words in commands if (said := fault(words))]
    assert not wrong, "\n".join(wrong)
    assert found > 150, "the pages' commands are not found any more"


def test_every_command_that_the_text_names_exists() -> None:
    """What it is given may be left out there."""
    lines = [line for page in pages() for line in named_commands(page)]
    faults = [(line, fault(words)) for line in lines for words in banger_commands(line)]
    wrong = [f"{line}\n    {said}" for line, said in faults if said and "Missing parameter" not in said]
    assert not wrong, "\n".join(wrong)
    assert len(faults) > 100, "they are not found any more"


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("banger vm list; banger vm delete web", ["vm list", "vm delete web"]),
        ("sudo banger vm shell web   # a shell", ["vm shell web"]),
        ("A=b .venv/bin/banger vm run > out < in", ["vm run"]),
        ("tar c . | banger vm cp - web:/srv           one on stdin", ["vm cp - web:/srv"]),
        ("banger vm list -q | xargs banger vm stop", ["vm list -q", "vm stop from-xargs"]),
        ("banger vm exec web -- sh -c 'a; b'", ["vm exec web -- sh -c a; b"]),
        ("rm -f $(banger vm list -q)", ["vm list -q"]),
        ("apt install banger now", []),
    ],
)
def test_the_commands_of_a_line(text: str, commands: list[str]) -> None:
    assert [" ".join(words) for words in banger_commands(Line("page", 1, text))] == commands


@pytest.mark.parametrize(
    "command",
    ["vm lst", "vm list --no-such", "vm start", "vm run --memory lots", "image pull a b", "nothing"],
)
def test_a_command_that_does_not_exist_is_noticed(command: str) -> None:
    assert fault(command.split())
