"""The commands of the written pages, typed in order as they stand there, at one real guest called web.

tests/unit/cli/test_docs_commands.py reads the commands of all pages; here each page is typed, or it is said
why not and which tests do the same. What only looks like it works on paper fails here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from tests.docpages import PROJECT, Line, banger_commands, code_lines, pages, without_comment
from tests.guest.instance import Instance
from tests.guest.typist import CONSOLE, Typist, typist

pytestmark = pytest.mark.guest


@dataclass(frozen=True)
class Page:
    """before: typed first, at the page's beginning (key "") or before a line.
    other: lines that are not typed, and why."""

    before: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    other: Mapping[str, str] = field(default_factory=dict)


STUBS = (
    "banger vm exec web -- mkdir -p src",
    r"""banger vm exec web -- sh -c 'printf "#!/bin/sh\necho made\n" > /bin/make'""",
    r"""banger vm exec web -- sh -c 'printf "#!/bin/sh\ncat; sleep 999\n" > /bin/sqlite3'""",
    "banger vm exec web -- chmod +x /bin/make /bin/sqlite3",
)
A_TERMINAL = "a terminal that somebody types at: tests/guest/test_terminal.py, test_sessions.py, test_ssh.py"
ONE_MORE = "boots a guest of its own, as many tests do"

TYPED = {
    "docs/sessions.md": Page(
        before={
            "": STUBS,
            "banger vm session send web db - < dump.sql": ("echo select > dump.sql",),
            "banger vm session list web --tag role=ci -q | xargs banger vm session stop web": (
                "banger vm session start web --tag role=ci -- sleep 999",
            ),
        },
        other={"banger vm session start web -t --name work --attach -- bash -l": A_TERMINAL},
    ),
    "docs/copy.md": Page(
        before={"": ("mkdir copies && cd copies && mkdir site && touch site/index.html notes.txt",)}
    ),
    "docs/ports.md": Page(other={"banger vm run -d --name web -p 8080:80": ONE_MORE}),
    "docs/network.md": Page(other={"banger vm run --nat": ONE_MORE}),
    "docs/ssh.md": Page(
        other={
            "banger vm ssh web": A_TERMINAL,
            "banger vm ssh -t web -- top": A_TERMINAL,
            "banger vm ssh --user dev web": "an account that the image has not: tests/guest/test_ssh.py",
        }
    ),
}

ELSEWHERE = {
    "README.md": "each line has its page; what it records is typed by test_tutorial.py",
    "docs/cli.md": "help, read by the unit test; each command has tests of its own",
    "docs/api.md": "for programs",
    "docs/config.md": "one command that ends the daemon",
    "docs/coexistence.md": "other firewalls: test_coexistence.py",
    "docs/docker.md": "typed by test_docker.py",
    "docs/doctor.md": "the host's packages: tests/host/test_doctor_network.py",
    "docs/files.md": "a configuration and a new VM: test_file_sync.py",
    "docs/images.md": "typed by test_docs_images.py",
    "docs/names.md": "typed by test_docs_network.py",
    "docs/net-why.md": "typed by test_docs_network.py",
    "docs/workspaces.md": "repositories: test_workspace_in.py, test_workspace_out.py, test_tutorial.py",
    "docs/python.md": "typed by test_python_docs.py",
    "docs/design.md": "an explanation",
}


def typed_lines(name: str) -> list[Line]:
    return [line for line in code_lines(PROJECT / name) if is_command(line)]


def is_command(line: Line) -> bool:
    try:
        return bool(list(banger_commands(line)))
    except ValueError:
        return False


def test_every_page_with_commands_is_typed_or_has_a_reason() -> None:
    for page in pages():
        name = str(page.relative_to(PROJECT))
        shown = bool(CONSOLE.search(page.read_text(encoding="utf-8")))  # typed by test_tutorial.py
        if typed_lines(name) and not shown:
            assert name in TYPED or name in ELSEWHERE, f"{name}: is typed nowhere"


@pytest.fixture(scope="module")
def person(banger: Instance) -> Iterator[Typist]:
    with typist(banger) as at_a_prompt:
        at_a_prompt.type("banger --quiet vm run -d --name web")
        assert at_a_prompt.status == 0
        yield at_a_prompt


def do(person: Typist, command: str, line: object) -> None:
    shown = person.type(command)
    status = person.status
    assert status == 0, "\n".join([f"{line}", f"exit status {status} of: {command}", *shown])


@pytest.mark.parametrize("name", TYPED)
def test_a_pages_commands_do_what_they_say(person: Typist, name: str) -> None:
    page = TYPED[name]
    unused = {*page.before, *page.other} - {""}
    do(person, "cd ~", name)
    for setup in page.before.get("", ()):
        do(person, setup, name)
    for line in typed_lines(name):
        text = without_comment(line.text)
        unused.discard(text)
        for setup in page.before.get(text, ()):
            do(person, setup, line)
        if text not in page.other:
            do(person, text, line)
    assert not unused, f"{name} has no such lines: {sorted(unused)}"
