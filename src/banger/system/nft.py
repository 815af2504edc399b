"""nftables through the host's `nft`: atomic, and what people debug with. Called by helper/ only."""

from __future__ import annotations

import msgspec

from banger.system.programs import find
from banger.system.run import run

_TIMEOUT_S = 20.0


async def apply(ruleset: str) -> None:
    """Load a ruleset in one transaction: all of it, or nothing and CommandError."""
    await run(["nft", "-f", "-"], timeout_s=_TIMEOUT_S, input=ruleset.encode("utf-8"))


async def tables() -> list[tuple[str, str]]:
    """(family, name) of every table; [] where nft is not installed."""
    if find("nft") is None:
        return []
    listed = await run(["nft", "-j", "list", "tables"], timeout_s=_TIMEOUT_S)
    decoded = msgspec.json.decode(listed.stdout, type=dict[str, list[dict[str, dict[str, object]]]])
    found = [entry["table"] for entry in decoded.get("nftables", []) if "table" in entry]
    return [(str(table.get("family", "")), str(table.get("name", ""))) for table in found]
