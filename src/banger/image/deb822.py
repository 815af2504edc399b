"""Debian's control format and version order: paragraphs of `Field: value`, as in Packages and Release.

Pure parsing of text that may be hostile: bounded by the size of what is given, no recursion, no
regular expression that backtracks. Used by the archive client and by the reader of apt's sources.
"""

from __future__ import annotations

from collections.abc import Iterator

from banger.image.errors import invalid

MAX_PARAGRAPH = 1 << 20


def parse_paragraph(text: str) -> dict[str, str]:
    """Fields of one paragraph; names lower-cased, continuation lines joined by newlines.

    A line that is neither a field, a continuation nor a comment is IMAGE_INVALID, and so is a field that
    comes twice: which of them counts, readers disagree on.
    """
    fields: dict[str, str] = {}
    name = ""
    for line in text.split("\n"):  # not at what else Unicode has: a description may have it
        if line.startswith("#") or not line.strip():
            continue
        if line[0] in " \t":
            if not name:
                raise invalid("a control paragraph begins with a continuation line")
            fields[name] += "\n" + line.strip()
            continue
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if not colon or not name or " " in name:
            raise invalid(f"not a control field: {line[:80]!r}")
        if name in fields:
            raise invalid(f"a control paragraph with {name[:80]!r} twice")
        fields[name] = value.strip()
    return fields


def parse_paragraphs(text: str) -> Iterator[dict[str, str]]:
    """All paragraphs of a text, which empty lines part."""
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            fields = parse_paragraph("\n".join(lines))
            if fields:
                yield fields
            lines = []


def find_paragraphs(index: bytes, field: str, value: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a (large) index whose `field` is exactly `value`.

    A byte search instead of a parse of all: Debian's index is 50 MB, and one paragraph is wanted.
    """
    needle = f"{field}: {value}\n".encode()
    position = 0
    while True:
        position = index.find(needle, position)
        if position < 0:
            return
        if position == 0 or index[position - 1 : position] == b"\n":
            begin = index.rfind(b"\n\n", 0, position)
            begin = 0 if begin < 0 else begin + 2
            end = index.find(b"\n\n", position)
            end = len(index) if end < 0 else end
            if end - begin > MAX_PARAGRAPH:
                raise invalid("a paragraph of the package index is too long")
            yield parse_paragraph(index[begin:end].decode("utf-8", "replace"))
        position += len(needle)


def parse_sums(value: str) -> dict[str, tuple[str, int]]:
    """A Release file's SHA256 field: path → (digest, size in bytes)."""
    sums: dict[str, tuple[str, int]] = {}
    for line in value.splitlines():
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 3 or len(parts[0]) != 64 or not parts[1].isascii() or not parts[1].isdigit():
            raise invalid(f"not a checksum line: {line[:120]!r}")
        sums[parts[2]] = (parts[0].lower(), int(parts[1]))
    return sums


def parse_depends(value: str) -> list[tuple[str, str]]:
    """Depends as (package, exact version or ""), the first of alternatives, without architectures."""
    wanted: list[tuple[str, str]] = []
    for item in value.replace("\n", " ").split(","):
        first = item.partition("|")[0].strip()
        if not first:
            continue
        name, _, rest = first.partition("(")
        version = ""
        relation = rest.partition(")")[0].split()
        if len(relation) == 2 and relation[0] == "=":
            version = relation[1]
        wanted.append((name.split(":")[0].split("[")[0].strip(), version))
    return wanted


def _order(character: str) -> int:
    if character == "~":
        return -1
    if character.isalpha():
        return ord(character)
    return ord(character) + 256


def _compare_part(left: str, right: str) -> int:
    i = j = 0
    while i < len(left) or j < len(right):
        while (i < len(left) and not left[i].isdigit()) or (j < len(right) and not right[j].isdigit()):
            a = _order(left[i]) if i < len(left) and not left[i].isdigit() else 0
            b = _order(right[j]) if j < len(right) and not right[j].isdigit() else 0
            if a != b:
                return -1 if a < b else 1
            i, j = i + 1, j + 1
        begin_i, begin_j = i, j
        while i < len(left) and left[i].isdigit():
            i += 1
        while j < len(right) and right[j].isdigit():
            j += 1
        first, second = left[begin_i:i].lstrip("0"), right[begin_j:j].lstrip("0")
        if len(first) != len(second):
            return -1 if len(first) < len(second) else 1
        if first != second:
            return -1 if first < second else 1
    return 0


def compare_versions(left: str, right: str) -> int:
    """-1, 0 or 1, by Debian's order (deb-version(7))."""

    def split(version: str) -> tuple[int, str, str]:
        epoch, colon, rest = version.partition(":")
        if not colon:
            epoch, rest = "0", version
        upstream, hyphen, revision = rest.rpartition("-")
        if not hyphen:
            upstream, revision = rest, "0"
        return (int(epoch) if epoch.isascii() and epoch.isdigit() else 0), upstream, revision

    a, b = split(left), split(right)
    if a[0] != b[0]:
        return -1 if a[0] < b[0] else 1
    return _compare_part(a[1], b[1]) or _compare_part(a[2], b[2])
