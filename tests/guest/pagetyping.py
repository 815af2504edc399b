"""Pages whose commands are typed, each with what it needs around it: registries, files, other guests.

Used by test_docs_*.py and test_docker.py. A page's command lines are typed in
their order; a `Page` says what a reader has done before one of them, what it shows, and where it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.docpages import PROJECT, Line, banger_commands, code_lines, without_comment
from tests.guest.typist import Typist

PROGRAMS = ("dig", "curl", "git", "ssh", "scp", "sftp", "rsync", "make", "apt-get")
"""What pages tell to type besides banger."""
NUMBER = re.compile(r"\d+(?:\\\.\d+)?")


@dataclass(frozen=True)
class Refused:
    """A command that is to fail while something is in the way. setup: puts it there; undo: takes it away."""

    by: str
    """A pattern of what is said."""
    setup: Sequence[str] = ()
    undo: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """The keys are command lines as the page has them, without comments.

    before: typed first, at the page's beginning (key "") or before a line. fill: what stands for an ellipsis.
    shows: a pattern of what is to be seen. answers: what is typed when something is on the screen. other:
    lines that are not typed, and which tests do the same.
    """

    before: Mapping[str, Sequence[str]] = field(default_factory=dict)
    fill: Mapping[str, str] = field(default_factory=dict)
    shows: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, Refused] = field(default_factory=dict)
    answers: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    other: Mapping[str, str] = field(default_factory=dict)


def command_lines(name: str) -> list[Line]:
    """Without those of `console` blocks, which test_tutorial.py types."""
    return [line for line in code_lines(PROJECT / name) if line.fence != "console" and _is_command(line)]


def _is_command(line: Line) -> bool:
    try:
        return line.text.startswith(tuple(f"{name} " for name in PROGRAMS)) or any(banger_commands(line))
    except ValueError:
        return False


def claim(line: Line) -> str:
    """The pattern of a comment that is what a command shows, its numbers any numbers."""
    return NUMBER.sub(r"\\d+(?:\\.\\d+)?", re.escape(line.text.partition("# ")[2]))


def do(person: Typist, command: str, line: object, *, answers: Sequence[tuple[str, str]] = ()) -> str:
    """What it shows; it ends with 0."""
    shown = "\n".join(person.type(command, answers=answers))
    assert person.status == 0, f"{line}\nexit status {person.status} of: {command}\n{shown}"
    return shown


def refuse(person: Typist, command: str, line: object, refused: Refused) -> None:
    for setup in refused.setup:
        do(person, setup, line)
    shown = "\n".join(person.type(command))
    assert person.status != 0, f"{line}\nis not refused\n{shown}"
    assert re.search(refused.by, shown), f"{line}\nis not refused for {refused.by!r}\n{shown}"
    for undo in refused.undo:
        do(person, undo, line)


def type_page(person: Typist, name: str, page: Page) -> None:
    tables = (page.before, page.fill, page.shows, page.refused, page.answers, page.other)
    unused = {line for table in tables for line in table} - {""}
    for setup in page.before.get("", ()):
        do(person, setup, name)
    for line in command_lines(name):
        text = without_comment(line.text)
        unused.discard(text)
        for setup in page.before.get(text, ()):
            do(person, setup, line)
        if text in page.other:
            continue
        command = text.replace("…", page.fill[text]) if text in page.fill else text
        if text in page.refused:
            refuse(person, command, line, page.refused[text])
        shown = do(person, command, line, answers=page.answers.get(text, ()))
        wanted = page.shows.get(
            text, claim(line) if line.text.partition("# ")[2].startswith("would ") else ""
        )
        assert re.search(wanted, shown, re.M), f"{line}\ndoes not show {wanted!r}, but\n{shown}"
    assert not unused, f"{name} has no such lines: {sorted(unused)}"
