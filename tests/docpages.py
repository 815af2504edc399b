"""What the written pages tell a person to type: their code blocks, and the banger commands in those.

Used by the unit test that reads every command (tests/unit/cli/test_docs_commands.py) and by the guest
tests that type the pages' commands (tests/guest/test_docs_*.py, test_tutorial.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[1]
COMMENT = re.compile(r"(?:\s+#\s|\s{3,}(?![-|<>&])).*$")
"""After a command: ` # what it does`, or three blanks and what it does."""
FENCED = re.compile(r"^```.*?^```$", re.S | re.M)
NAMED = re.compile(r"(?<!`)`((?:sudo |\.venv/bin/)?banger [^`]+)`(?!`)")
SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
ENDS = {";", "&&", "||", "|", "&", ";;", "|&"}
REDIRECTIONS = {"<", ">", ">>", "<<", ">&", "<&", "&>", "<("}


@dataclass(frozen=True)
class Line:
    page: str
    number: int
    text: str
    fence: str = ""
    """What the block's fence says it is: `console`, `python`; "" for indented blocks."""

    def __str__(self) -> str:
        return f"{self.page}:{self.number}: {self.text}"


def pages() -> list[Path]:
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


def code_lines(page: Path) -> Iterator[Line]:
    """The lines of fenced and of indented blocks; those that end in a backslash joined with the next."""
    name = str(page.relative_to(PROJECT))
    fence: str | None = None
    indented = False
    blank = True
    open_line: Line | None = None
    for number, raw in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if raw.lstrip().startswith("```"):
            fence = raw.strip().strip("`") if fence is None else None
            continue
        indented = fence is None and raw.startswith("    ") and (blank or indented)
        blank = not raw.strip()
        if (fence is None and not indented) or blank:
            continue
        text = raw.strip() if open_line is None else f"{open_line.text[:-1].rstrip()} {raw.strip()}"
        line = Line(name, number if open_line is None else open_line.number, text, fence or "")
        open_line = line if text.endswith("\\") else None
        if open_line is None:
            yield line


def named_commands(page: Path) -> Iterator[Line]:
    """The commands that the text names: `banger vm list`, `sudo banger doctor`."""
    name = str(page.relative_to(PROJECT))
    text = FENCED.sub(lambda block: "\n" * block[0].count("\n"), page.read_text(encoding="utf-8"))
    for found in NAMED.finditer(text):
        yield Line(name, text.count("\n", 0, found.start()) + 1, " ".join(found[1].split()))


def without_comment(text: str) -> str:
    return COMMENT.sub("", text)


def banger_commands(line: Line) -> Iterator[list[str]]:
    """The words of every banger command in the line, without `banger`. ValueError: no shell reads it."""
    yield from _commands(without_comment(line.text))


def _commands(text: str) -> Iterator[list[str]]:
    for inner in SUBSTITUTION.findall(text):
        yield from _commands(inner)
    text = SUBSTITUTION.sub("substituted", text)
    if not re.search(r"\bbanger\s", text + " "):
        return
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] | None = None
    skip = False
    started = True
    before: list[str] = []
    for word in [*lexer, ";"]:
        if word in ENDS or word in (")", "<("):
            if words is not None:
                yield [*words, *(["from-xargs"] if "xargs" in before else [])]
            words, started, before = None, True, []
        elif word in REDIRECTIONS:
            skip = True
        elif skip:
            skip = False
        elif words is not None:
            words.append(word)
        elif word.removeprefix(".venv/bin/") == "banger" and started:
            words = []
        else:
            # before a command: assignments, sudo, xargs and the like, a prompt
            before.append(word)
            started = started and ("=" in word or word in ("sudo", "xargs", "time", "exec", "$", "$(", "("))
