"""Names of kept tips: from a guest's refs and paths, which may hold anything, to names that git takes. Pure.

Used by workspace/. A byte that a ref may not hold, or that a person cannot read, is `%XX`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

MAX_LENGTH = 400
"""Characters of one name; a component of a path on the host has at most 255 bytes."""
_MAX_COMPONENT = 180
OLD = "old/"
_FORBIDDEN = frozenset('~^:?*[\\"')
_ESCAPED = re.compile(r"%(?=[0-9A-F]{2})")


def kept_name(ref: bytes) -> str | None:
    """The KeptRef name of a guest's ref (`refs/…`), None for those that are never kept."""
    if not ref.startswith(b"refs/"):
        return None
    inside = ref[len(b"refs/") :]
    top = inside.partition(b"/")[0]
    if top in (b"remotes", b"banger", b"prefetch"):
        return None
    if inside == b"stash":
        return "stash"
    if top in (b"heads", b"tags", b"notes") and b"/" in inside:
        return spelled(inside)
    return "other/" + spelled(inside)


def sub_prefix(path: bytes) -> str:
    """What the names of the repository inside at `path` begin with."""
    return f"sub/{spelled(path)}/"


def spelled(path: bytes) -> str:
    """A path or ref as part of a ref's name, readable where it can be, never ambiguous."""
    return "/".join(_component(part) for part in path.split(b"/"))


def _component(part: bytes) -> str:
    text = part.decode("utf-8", "surrogateescape")
    text = _ESCAPED.sub("%25", text)
    text = "".join(_character(character) for character in text)
    if text.startswith("."):
        text = "%2E" + text[1:]
    if text.endswith(".lock"):
        text = text[:-5] + "%2Elock"
    elif text.endswith("."):
        text = text[:-1] + "%2E"
    text = text.replace("..", "%2E%2E").replace("@{", "%40{")
    if len(text.encode()) > _MAX_COMPONENT:
        text = text.encode()[: _MAX_COMPONENT - 3].decode("utf-8", "ignore") + "%2E"
    return text or "%20"


def _character(character: str) -> str:
    if character.isprintable() and character != " " and character not in _FORBIDDEN:
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))


def untangled(tips: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Names -> ids in which no name is there twice, and none is a folder of another's (refs cannot be)."""
    found: dict[str, str] = {}
    folders: set[str] = set()
    for name, commit in sorted(tips):
        wanted = name if len(name) <= MAX_LENGTH else f"{name[: MAX_LENGTH - 20].rstrip('/.')}%2E"
        number = 1
        free = wanted
        while free in found or free in folders or any(parent in found for parent in parents(free)):
            number += 1
            free = f"{wanted.replace('/', '%2F')}-{number}" if number > 2 else f"{wanted}-{number}"
        found[free] = commit
        folders.update(parents(free))
    return found


def parents(name: str) -> list[str]:
    """`a/b/c` -> `a`, `a/b`."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def in_the_way(names: Iterable[str], wanted: Mapping[str, str]) -> set[str]:
    """Those of `names` that are a folder of a wanted name, or lie below one."""
    above = {parent for name in wanted for parent in parents(name)}
    return {name for name in names if name in above or any(parent in wanted for parent in parents(name))}
