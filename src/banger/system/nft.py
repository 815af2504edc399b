"""nftables through the host's `nft`: atomic, and what people debug with. Called by helper/ only.

What was loaded stays after a crash. Whether a table is still as it was loaded is told by comparison with
what a fresh network namespace shows of the same text: the kernel's own words on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from banger.system.errors import CommandError
from banger.system.programs import find
from banger.system.run import run

_TIMEOUT_S = 20.0
_FRESH = ("unshare", "--net", "sh", "-c", "nft -f - && nft -j -s list ruleset")
_VOLATILE = frozenset({"handle", "index"})

Entry = dict[str, dict[str, object]]
"""An object as `nft -j` shows it: its kind, and its fields."""


class _Listed(msgspec.Struct, frozen=True):
    nftables: list[Entry]


async def apply(ruleset: str) -> None:
    """Load a ruleset in one transaction: all of it, or nothing and CommandError."""
    await run(["nft", "-f", "-"], timeout_s=_TIMEOUT_S, input=ruleset.encode("utf-8"))


async def tables() -> list[tuple[str, str]]:
    """(family, name) of every table; [] where nft is not installed."""
    if find("nft") is None:
        return []
    found = await _list("tables", kind="table")
    return [(str(table.get("family", "")), str(table.get("name", ""))) for table in found]


async def chains() -> list[tuple[str, str, str]]:
    """(family, table, name) of every chain of every table."""
    found = await _list("chains", kind="chain")
    return [(str(c.get("family", "")), str(c.get("table", "")), str(c.get("name", ""))) for c in found]


async def listing(wanted: Sequence[tuple[str, str]]) -> str | None:
    """These tables as the kernel has them, in a form to compare; None when one of them is not there."""
    entries: list[Entry] = []
    for family, name in wanted:
        try:
            listed = await run(["nft", "-j", "-s", "list", "table", family, name], timeout_s=_TIMEOUT_S)
        except CommandError:
            if (family, name) not in await tables():
                return None
            raise
        entries += _decode(listed.stdout)
    return _comparable(entries)


async def canonical(ruleset: str) -> str:
    """What `listing` shows when a ruleset alone has been loaded."""
    shown = await run(list(_FRESH), timeout_s=_TIMEOUT_S, input=ruleset.encode("utf-8"))
    return _comparable(_decode(shown.stdout))


async def _list(what: str, *, kind: str) -> list[dict[str, object]]:
    listed = await run(["nft", "-j", "list", what], timeout_s=_TIMEOUT_S)
    return [entry[kind] for entry in _decode(listed.stdout) if kind in entry]


def _decode(listed: bytes) -> list[Entry]:
    return msgspec.json.decode(listed, type=_Listed).nftables


def _comparable(entries: list[Entry]) -> str:
    """Without what differs from load to load: handles, and the order of a set's elements."""
    kept = []
    for entry in entries:
        for kind, fields in entry.items():
            if kind == "metainfo":
                continue
            shown = {name: value for name, value in fields.items() if name not in _VOLATILE}
            if isinstance(elements := shown.get("elem"), list):
                shown["elem"] = sorted(elements, key=msgspec.json.encode)
            kept.append({kind: shown})
    kept.sort(key=lambda entry: next(iter(entry)) == "rule")  # rules in their own order, behind the rest
    return msgspec.json.encode(kept).decode("utf-8")
