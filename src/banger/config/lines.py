"""Where in a TOML text a key is: tomllib does not say, so the text is looked through again.

Only config/toml.py uses it, for the line in an error's message. It knows headers, dotted and quoted keys and
multi-line strings; what it cannot place it says 0 for, rather than a wrong line. Pure.
"""

from __future__ import annotations

import re

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]#]+?)\s*(\]\]?)\s*(?:#.*)?")
_KEY = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"\\]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"\\]*"|'[^']*'))*)\s*="""
)
_MAX_LINE = 2000  # the patterns above take quadratic time for what does not fit them
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"\\]*"|'[^']*'""")


def find_line(text: str, key: str, *, table: str = "", number: int = 0) -> int:
    """The line, from 1, of `key` in `table` ("": the top), its entry `number` from 1 where there are many.

    An empty key, and one that is not found, is the line of the table's header; 0: not to be had.
    """
    header_line = 0
    current: tuple[str, ...] = ()
    count = 0
    quote = ""
    for line_number, line in enumerate(text.split("\n"), 1):
        if quote:
            quote = _open_quote(line, quote)
            continue
        if len(line) > _MAX_LINE:
            quote = _open_quote(line, "")
            continue
        header = _HEADER.fullmatch(line.rstrip("\r"))
        if header and len(header[1]) == len(header[3]):
            current = _parts(header[2])
            if current == (table,):
                count += 1
                if not number or count == number:
                    header_line = header_line or line_number
            elif not table and current[:1] == (key,):
                return line_number
            continue
        found = _KEY.match(line)
        if found:
            path = _parts(found[1])
            wanted = (table, key) if table else (key,)
            inside = not number or current != (table,) or count == number
            if key and inside and (*current, *path)[: len(wanted)] == wanted:
                return line_number
            if table and not current and path[:1] == (table,):  # table = { … }, or table = [ { … }, … ]
                header_line = header_line or line_number
        quote = _open_quote(line, "")
    return header_line


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") if part[:1] in "\"'" else part for part in _PART.findall(dotted))


def _open_quote(line: str, quote: str) -> str:
    """The multi-line quote that is open at the line's end, given the one that was open at its start."""
    position = 0
    while position < len(line):
        if quote:
            end = line.find(quote, position)
            if end < 0:
                return quote
            position = end + 3
            quote = ""
            continue
        letter = line[position]
        if letter == "#":
            return ""
        if letter in "\"'":
            triple = letter * 3
            if line.startswith(triple, position):
                quote = triple
                position += 3
                continue
            end = position + 1
            while end < len(line) and line[end] != letter:
                end += 2 if letter == '"' and line[end] == "\\" else 1
            position = end
        position += 1
    return quote
