"""What filters packets on this host, as its programs tell it: nftables whole, and old-style iptables.

Reads only, of the network namespace that the caller is in; needs root. iptables that writes nftables is in
nft's listing; the old kind is asked for only where the kernel says that a table of it is loaded, because
asking would load it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from banger.errors import BangerError
from banger.system.programs import find
from banger.system.run import run

LEGACY_TABLES = "/proc/thread-self/net/ip_tables_names"
BRIDGE_CALLS = "/proc/sys/net/bridge/bridge-nf-call-iptables"
_TIMEOUT_S = 10.0
_LISTING_LIMIT = 16 << 20


class FirewallFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """nft: the answer of `nft -j list ruleset`. legacy: of iptables-legacy-save. problem: why one is missing.
    bridge_calls: IPv4 that stays on a bridge goes through the forward chains too (br_netfilter)."""

    nft: bytes = b""
    legacy: str = ""
    problem: str = ""
    bridge_calls: bool = False


async def firewall_facts() -> FirewallFacts:
    """Never raises: what cannot be seen is the problem."""
    problems: list[str] = []
    nft = await _said(["nft", "-j", "list", "ruleset"], problems) if find("nft") else b""
    legacy = b""
    if "filter" in _read(LEGACY_TABLES).split():
        program = "iptables-legacy-save" if find("iptables-legacy-save") else "iptables-save"
        legacy = await _said([program, "-t", "filter"], problems)
    return FirewallFacts(
        nft=nft,
        legacy=legacy.decode("utf-8", "replace"),
        problem="; ".join(problems),
        bridge_calls=_read(BRIDGE_CALLS).strip() == "1",
    )


async def _said(argv: list[str], problems: list[str]) -> bytes:
    try:
        done = await run(argv, timeout_s=_TIMEOUT_S, output_limit=_LISTING_LIMIT)
    except (BangerError, OSError) as error:
        problems.append(str(error))
        return b""
    if len(done.stdout) >= _LISTING_LIMIT:
        problems.append(f"{argv[0]} lists more than {_LISTING_LIMIT >> 20} MiB")
        return b""
    return done.stdout


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
