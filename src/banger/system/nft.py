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
_LISTING_LIMIT = 32 << 20
"""Some 150 bytes a guest, 100 a chain: more than all guests of an instance, or a cluster program, take."""
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
            entries += await _shown(["nft", "-j", "-s", "list", "table", family, name])
        except CommandError:
            if (family, name) not in await tables():
                return None
            raise
    return _comparable(entries)


async def canonical(ruleset: str) -> str:
    """What `listing` shows when a ruleset alone has been loaded."""
    return _comparable(await _shown(_FRESH, input=ruleset.encode("utf-8")))


async def _list(what: str, *, kind: str) -> list[dict[str, object]]:
    return [entry[kind] for entry in await _shown(["nft", "-j", "list", what]) if kind in entry]


async def _shown(argv: Sequence[str], *, input: bytes | None = None) -> list[Entry]:
    """What `nft -j` lists. CommandError also where that is not to be read, or too much."""
    said = await run(argv, timeout_s=_TIMEOUT_S, input=input, output_limit=_LISTING_LIMIT)
    try:
        return msgspec.json.decode(said.stdout, type=_Listed).nftables
    except msgspec.DecodeError as error:
        raise CommandError(argv, said.status, what="lists what cannot be read") from error


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
