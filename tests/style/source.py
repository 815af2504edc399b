"""What the style tests read: the project's own files, their imports and their calls, by syntax tree."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PACKAGE = PROJECT / "src" / "banger"
OUR_FOLDERS = ("src", "tests", "agent", "bench", "docs", "tools", ".ci")
MADE = {"__pycache__", "agent_bin", "build", "results", ".hypothesis", ".mypy_cache", ".ruff_cache"}
"""Folders that hold what a build or a run made."""


def files(*suffixes: str, below: tuple[str, ...] = OUR_FOLDERS) -> list[Path]:
    """Our own files with one of the suffixes (all, when none is given), sorted."""
    found = [path for path in PROJECT.iterdir() if path.is_file()] if below == OUR_FOLDERS else []
    for folder in below:
        found += [path for path in (PROJECT / folder).rglob("*") if path.is_file()]
    return sorted(
        path
        for path in found
        if (not suffixes or path.suffix in suffixes) and not MADE & set(path.relative_to(PROJECT).parts)
    )


def name(path: Path) -> str:
    """How a file is called in messages: its path inside the project."""
    return str(path.relative_to(PROJECT))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def modules() -> list[Path]:
    """The package's modules."""
    return files(".py", below=("src/banger",))


def room_of(path: Path) -> str:
    """The room a module of the package belongs to: its folder right below banger/, or "errors"."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _package_of(path: Path) -> list[str]:
    return ["banger", *path.relative_to(PACKAGE).parent.parts]


@dataclass(frozen=True)
class Import:
    module: str  # absolute; for `from a import b`, "a.b"
    line: int


def imports(path: Path) -> Iterator[Import]:
    """Every import of a module of the package, wherever in the file; relative ones made absolute.

    Those below `if TYPE_CHECKING:` too: what a module must know to be typed, it knows.
    """
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = _package_of(path)
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain; "" in front where it begins with something else than a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def names_used(path: Path) -> Iterator[tuple[str, int]]:
    """Every dotted name in a module, by the name it was imported under, made absolute where it was
    imported with `from … import` or `as`."""
    known: dict[str, str] = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            known.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name | ast.Attribute):
            head, _, rest = dotted(node).partition(".")
            head = known.get(head, head)
            yield (f"{head}.{rest}" if rest else head), node.lineno
