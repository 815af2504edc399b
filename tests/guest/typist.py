"""A person who types what a page says into one bash at a terminal, in a home of their own; and what they see.

The bash runs in the instance's network namespace, with `banger` on PATH and an account (ssh asks /etc/passwd)
whose home is the given folder.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.docpages import PROJECT
from tests.guest.instance import BANGER, BOOT_TIMEOUT_S, Instance
from tests.guest.screen import Screen, at_a_terminal

ROWS, COLUMNS = 400, 110
PATIENCE_S = 400.0
"""With one command: a guest's Docker may be among what it waits for."""
# the terminal's title tells which prompt this is, and what the last command ended with: nothing on the screen
# can be taken for it
RC = f"""\
stty rows {ROWS} cols {COLUMNS}
PS1='\\[\\e]0;ready \\# $?\\a\\]$ '
bind 'set enable-bracketed-paste off'
git config --global user.name Ann; git config --global user.email ann@example.org
git config --global init.defaultBranch main; git config --global advice.detachedHead false
cd
"""
IN_HOME = 'mount --bind "$0" /etc/passwd && exec bash --rcfile "$1" -i'

IF_SLOW = re.compile(r"banger: \S+ is still starting, waiting for")
"""A line that is there or not, as the guest is slow or quick."""


class Typist:
    def __init__(self, screen: Screen, paths: Mapping[str, str]) -> None:
        """paths: what is shown of some paths instead of them."""
        self._screen = screen
        self._paths = paths
        self._commands = 0
        self.wait()

    def wait(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Until the prompt is there for the next command."""
        self._commands += 1
        self._screen.until(
            lambda: self._screen.title.startswith(f"ready {self._commands} "), timeout_s=timeout_s
        )

    def type(self, line: str, *, answers: Sequence[tuple[str, str]] = ()) -> list[str]:
        """The line and Enter; the lines that are below it when the next prompt is there.

        answers: what is typed in turn when something is on the screen, for a command that asks.
        """
        self._screen.type("clear\n")
        self.wait()
        self._screen.type(line + "\n")
        for asked, keys in answers:
            self._screen.until(asked, timeout_s=BOOT_TIMEOUT_S)
            self._screen.type(keys)
        self.wait(PATIENCE_S)
        rows = -(-(len(line) + 2) // COLUMNS)
        shown = "\n".join(self._screen.whole_lines(rows)).rstrip().removesuffix("$").rstrip("\n")
        for real, written in self._paths.items():
            shown = shown.replace(real, written)
        return [one for one in shown.splitlines() if not IF_SLOW.match(one)]

    @property
    def status(self) -> int:
        """What the command that was typed last exited with."""
        return int(self._screen.title.split()[-1])


@contextmanager
def typist(banger: Instance) -> Iterator[Typist]:
    """At a prompt in the empty home of Ann's, which is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="b"))  # short: lines are to be as long as in /home
    try:
        with _at_a_prompt(banger, folder) as person:
            yield person
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _at_a_prompt(banger: Instance, folder: Path) -> Iterator[Typist]:
    home = folder / "ann"
    home.mkdir()
    programs = folder / "bin"
    programs.mkdir()
    (programs / "banger").symlink_to(BANGER)
    passwd = folder / "passwd"
    passwd.write_text(f"root:x:0:0:root:{home}:/bin/sh\n")
    rc = folder / "bashrc"
    rc.write_text(RC)
    environment = {
        **banger.environment,
        "HOME": str(home),
        "PATH": f"{programs}:{banger.environment['PATH']}",
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "HISTFILE": "",
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    shell = ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_HOME, str(passwd), str(rc)]
    with at_a_terminal(banger.argv(*shell), environment) as screen:
        screen.resize(ROWS, COLUMNS)
        yield Typist(screen, {str(home): "/home/ann", f"{banger.home}/state": "/var/lib/banger"})


CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.S | re.M)
VOLATILE = (
    (re.compile(r"\b[0-9a-f]{32,64}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{7,12}\b"), "COMMIT"),
    (re.compile(r"\b\d+(\.\d+)?s\b"), "TIME"),
    (re.compile(r"\b\d+ (second|minute)s?\b"), "TIME"),
    (re.compile(r"\b172\.16\.0\.\d+\b"), "ADDRESS"),
    (re.compile(r"\b\d+(\.\d+)? ?([KMG]i?B|B)\b"), "SIZE"),
    (re.compile(r"^spec: .*"), "SPEC"),  # of this host
    (re.compile(r" {2,}"), "  "),
)


def normal(text: str) -> str:
    """What differs from run to run made equal: ids, commits, times, addresses, sizes, columns' widths."""
    for pattern, word in VOLATILE:
        text = pattern.sub(word, text)
    return text.rstrip()


def console(page: Path) -> list[str]:
    """The bodies of a page's console blocks."""
    return CONSOLE.findall(page.read_text(encoding="utf-8"))


def commands(block: str) -> list[tuple[str, list[str]]]:
    """A console block: each command behind `$ `, with the lines that are to come."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def play(person: Typist, page: Path, *, record: bool) -> list[str]:
    """Type all console blocks of a page; where what is shown is another than the page says: how it differs.
    With record the page gets what was shown."""
    differ: list[str] = []
    text = page.read_text(encoding="utf-8")
    for block in console(page):
        made = ""
        for line, wanted in commands(block):
            shown = person.type(line)
            made += "\n".join([f"$ {line}", *shown]) + "\n"
            if [normal(one) for one in shown] != [normal(one) for one in wanted]:
                differ.append(
                    f"{page.relative_to(PROJECT)}: $ {line}\n"
                    + "\n".join(
                        [*(f"  page   {one}" for one in wanted), *(f"  shown  {one}" for one in shown)]
                    )
                )
        text = text.replace(f"```console\n{block}```", f"```console\n{made}```")
    if record:
        page.write_text(text, encoding="utf-8")
    return differ
