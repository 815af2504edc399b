"""The programs of docs/python.md, and what the page says that they print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Program(NamedTuple):
    """heading: the section in which it stands, and its number there."""

    heading: str
    code: str
    prints: str


def programs(text: str = "") -> list[Program]:
    """In their order. Each is followed by what it prints."""
    text = text or PAGE.read_text(encoding="utf-8")
    found: list[Program] = []
    blocks = list(_BLOCK.finditer(text))
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] != "python":
            continue
        assert following is not None, block[2]
        assert following[1] == "text", f"what does this print?\n{block[2]}"
        assert not text[block.end() : following.start()].strip(), block[2]
        heading = re.findall(r"^## (.*)$", text[: block.start()], re.MULTILINE)[-1:] or ["Python"]
        found.append(Program(f"{len(found)}-{heading[0]}".replace(" ", "-"), block[2], following[2]))
    return found
