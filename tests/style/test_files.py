"""Rules for files: their length, their first words, and what they must not name."""

from __future__ import annotations

import ast
import re

from tests.style import source

LONGEST = 700
DOCSTRING_LINES = 14
"""A module's contract is 3–10 lines; a table or an example in it may need a few more."""

NAMELESS = tuple(
    ".".join(parts)
    for parts in (
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
        ("ghcr", "io"),
        ("quay", "io"),
        ("docker", "io"),
        ("docker", "com"),
    )
)
"""Hosts of registries and mirrors. What is fetched comes from the host's own settings and the user's
references, so that a mirror or an air gap needs no change of code."""
MAY_NAME = {
    "src/banger/image/oci/reference.py": {"docker" + ".io"},
    "src/banger/image/catalog.py": {"docker" + ".io"},
}
"""A reference without a registry means Docker's; one module knows that. So is Debian's package called."""

TEXT = {".py", ".c", ".h", ".md", ".toml", ".sh", ".yaml", ".yml", ".txt", ".json", ""}


def test_no_file_is_too_long() -> None:
    long = {
        source.name(path): lines
        for path in source.files(".py", ".c", ".h", ".sh")
        if (lines := len(path.read_text().splitlines())) > LONGEST
    }
    assert not long, f"longer than {LONGEST} lines: {long}"


def test_every_module_says_what_it_is() -> None:
    silent = []
    wordy = []
    for path in source.files(".py"):
        tree = ast.parse(path.read_text())
        said = ast.get_docstring(tree)
        if not said and tree.body:
            silent.append(source.name(path))
        elif said and path.is_relative_to(source.PACKAGE) and len(said.splitlines()) > DOCSTRING_LINES:
            wordy.append(source.name(path))
    assert not silent, f"no module docstring: {silent}"
    assert not wordy, f"a docstring over {DOCSTRING_LINES} lines: {wordy}"


def test_every_c_file_says_what_it_is() -> None:
    silent = [
        source.name(path)
        for path in source.files(".c", ".h")
        if not path.read_text().lstrip().startswith(("/*", "//"))
    ]
    assert not silent


def test_no_host_of_a_registry_or_mirror_is_named() -> None:
    hosts = re.compile(
        "|".join(rf"(?<![\w.-]){re.escape(host)}|(?<=\.){re.escape(host)}" for host in NAMELESS)
    )
    found = []
    for path in source.files():
        if path.suffix not in TEXT:
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            named = set(hosts.findall(line)) - MAY_NAME.get(source.name(path), set())
            if named:
                found.append(f"{source.name(path)}:{number}: {', '.join(sorted(named))}")
    assert not found, "\n".join(found)


def test_scripts_are_executable_and_stop_at_errors() -> None:
    for path in [*source.files(".sh"), source.PROJECT / ".ci/run"]:
        first, text = path.read_text().splitlines()[0], path.read_text()
        assert first.startswith("#!"), source.name(path)
        assert path.stat().st_mode & 0o111, f"{source.name(path)} is not executable"
        assert re.search(r"^set -e", text, re.MULTILINE), f"{source.name(path)} goes on after errors"
