"""The house: which room may use which (ARCHITECTURE.md, "The house"). This table is the rule."""

from __future__ import annotations

import re
import sys

import pytest

from tests.style import source

FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("local",),
    ("client",),
    ("daemon",),
    ("vm",),
    ("workspace", "image"),
    ("guest",),
    ("network", "disk"),
    ("vmm",),
    ("helper",),
    ("system",),
    ("store",),
    ("config",),
    ("api",),
    ("model",),
    ("errors",),
)
"""From the roof down. A room may use what stands on a lower floor, never a neighbour or what is above."""

NARROWER: dict[str, frozenset[str]] = {
    "cli": frozenset({"local", "client", "config", "model", "errors"}),
    "client": frozenset({"guest", "config", "model", "errors"}),
}
"""Rooms that may use less than their height allows: they start on every command."""

CLIENT_OF_GUEST = ("banger.guest.wire", "banger.guest.sessionwire")
"""The modules of guest/ that the client shares: frames and fields, standard library only."""

THIRD_PARTY: dict[str, frozenset[str]] = {
    "cli": frozenset({"click"}),
    "local": frozenset({"msgspec"}),
    "client": frozenset(),
    "daemon": frozenset({"msgspec", "aiohttp"}),
    "vm": frozenset({"msgspec"}),
    "workspace": frozenset({"msgspec"}),
    "image": frozenset({"msgspec", "aiohttp", "backports", "lz4"}),
    "guest": frozenset({"msgspec"}),
    "network": frozenset({"msgspec", "dnslib"}),
    "disk": frozenset({"msgspec"}),
    "vmm": frozenset({"msgspec", "aiohttp"}),
    "helper": frozenset({"msgspec"}),
    "system": frozenset({"msgspec", "pyroute2"}),
    "store": frozenset({"msgspec"}),
    "config": frozenset({"msgspec"}),
    "api": frozenset({"msgspec"}),
    "model": frozenset({"msgspec"}),
    "errors": frozenset(),
}
"""Which package beyond the standard library a room may use: each has one place (or few) to replace it."""

HEIGHT = {room: len(FLOORS) - number for number, floor in enumerate(FLOORS) for room in floor}


def allowed(room: str) -> set[str]:
    below = {other for other in HEIGHT if HEIGHT[other] < HEIGHT[room]}
    return below & NARROWER.get(room, below) | {room}


def test_every_room_is_in_the_table() -> None:
    rooms = {source.room_of(path) for path in source.modules()} - {"__init__", "__main__"}
    assert rooms <= set(HEIGHT), "a room without a place in the house"
    assert set(THIRD_PARTY) == set(HEIGHT)


@pytest.mark.parametrize("room", HEIGHT)
def test_no_import_points_up(room: str) -> None:
    wrong = []
    for path in source.modules():
        if source.room_of(path) != room:
            continue
        for imported in source.imports(path):
            parts = imported.module.split(".")
            if parts[0] != "banger" or len(parts) < 2 or parts[1].startswith("__"):
                continue
            upward = parts[1] not in allowed(room)
            whole_guest = (
                room == "client" and parts[1] == "guest" and (not imported.module.startswith(CLIENT_OF_GUEST))
            )
            if upward or whole_guest:
                wrong.append(f"{source.name(path)}:{imported.line}: {imported.module}")
    assert not wrong, f"{room} may use {', '.join(sorted(allowed(room)))}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("room", HEIGHT)
def test_third_party_packages_have_their_places(room: str) -> None:
    wrong = []
    for path in source.modules():
        if source.room_of(path) != room:
            continue
        for imported in source.imports(path):
            top = imported.module.split(".")[0]
            if top not in sys.stdlib_module_names and top not in {"banger", *THIRD_PARTY[room]}:
                wrong.append(f"{source.name(path)}:{imported.line}: {imported.module}")
    assert not wrong, "\n".join(wrong)


def test_the_house_is_drawn_as_it_is_here() -> None:
    """ARCHITECTURE.md's table: the same floors from the roof down, the same packages."""
    text = (source.PROJECT / "ARCHITECTURE.md").read_text()
    section = text.partition("\n## The house\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert [tuple(re.findall(r"`(\w+)`", row[0])) for row in rows] == list(FLOORS)
    for floor, row in zip(FLOORS, rows, strict=True):
        packages = {package.split(".")[0] for package in row[-1].split(", ")} - {"—"}
        assert packages == set().union(*(THIRD_PARTY[room] for room in floor)), floor


def test_package_files_are_empty() -> None:
    """A package's import must cost nothing; what it has is in its modules."""
    full = [
        source.name(path)
        for path in source.modules()
        if path.name == "__init__.py" and path.parent != source.PACKAGE and path.read_text().strip()
    ]
    assert not full
