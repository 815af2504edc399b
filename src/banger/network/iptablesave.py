"""iptables-save's text → rules in nft's JSON words, as network/netfilter.py reads them. Pure.

Only for old-style iptables, which nft does not list. What is not known becomes an extension that decides
nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

Statement = dict[str, object]
_HARMLESS = frozenset({"tcp", "udp", "conntrack", "state", "comment", "icmp"})
_VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return"}
_SIDE_EFFECTS = frozenset(
    {"LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "TRACE", "AUDIT", "SET", "CT", "TOS"}
)


@dataclass(slots=True)
class SavedChain:
    """policy: ACCEPT or DROP of a chain that the kernel calls, "" for one of the user's."""

    name: str
    policy: str
    rules: list[list[Statement]] = field(default_factory=list)


def parse_save(text: str) -> list[SavedChain]:
    """The chains of the table `filter`; lines that are none of its are passed over."""
    chains: dict[str, SavedChain] = {}
    within = False
    for line in text.splitlines():
        if line.startswith("*"):
            within = line.strip() == "*filter"
        elif not within:
            continue
        elif line.startswith(":"):
            name, _, rest = line[1:].partition(" ")
            policy = rest.split(" ")[0]
            chains[name] = SavedChain(name, "" if policy == "-" else policy)
        elif line.startswith("-A "):
            try:
                words = shlex.split(line)
            except ValueError:
                continue
            if len(words) > 1 and words[1] in chains:
                chains[words[1]].rules.append(_rule(words[2:], frozenset(chains)))
    return list(chains.values())


def _rule(words: list[str], chains: frozenset[str]) -> list[Statement]:
    statements: list[Statement] = []
    protocol = ""
    inverted = False
    rest = iter(words)
    for word in rest:
        if word == "!":
            inverted = True
            continue
        operator = "!=" if inverted else "=="
        inverted = False
        if word in ("-i", "-o"):
            name = next(rest, "")
            key = "iifname" if word == "-i" else "oifname"
            named = name[:-1] + "*" if name.endswith("+") else name
            statements.append(_match({"meta": {"key": key}}, operator, named))
        elif word in ("-s", "-d"):
            address, _, length = next(rest, "").partition("/")
            side = {"payload": {"protocol": "ip", "field": "saddr" if word == "-s" else "daddr"}}
            network = {"prefix": {"addr": address, "len": int(length) if length.isdigit() else length or 32}}
            statements.append(_match(side, operator, network))
        elif word == "-p":
            protocol = next(rest, "")
            statements.append(_match({"meta": {"key": "l4proto"}}, operator, protocol))
        elif word in ("--dport", "--sport"):
            port = next(rest, "")
            side = {"payload": {"protocol": protocol, "field": word[2:]}}
            low, colon, high = port.partition(":")
            known = low.isdigit() and (not colon or high.isdigit())
            right: object = {"range": [int(low), int(high)]} if known and colon else int(low) if known else {}
            statements.append(_match(side, operator, right))
        elif word in ("--ctstate", "--state"):
            states: list[object] = [*next(rest, "").lower().split(",")]
            statements.append(_match({"ct": {"key": "state"}}, operator, {"set": states}))
        elif word == "-m":
            module = next(rest, "")
            if module not in _HARMLESS:
                statements.append({"xt": {"type": "match", "name": module}})
        elif word == "--comment":
            next(rest, "")
        elif word in ("-j", "-g"):
            target = next(rest, "")
            statements += _target(word, target, chains)
            break  # what follows belongs to the target
        elif word.startswith("-"):
            statements.append({"xt": {"type": "match", "name": word}})
    return statements


def _target(word: str, target: str, chains: frozenset[str]) -> list[Statement]:
    if target in chains:
        return [{"jump" if word == "-j" else "goto": {"target": target}}]
    if target in _VERDICTS:
        return [{_VERDICTS[target]: None}]
    return [] if target in _SIDE_EFFECTS else [{"xt": {"type": "target", "name": target}}]


def _match(left: Mapping[str, object], operator: str, right: object) -> Statement:
    return {"match": {"op": operator, "left": left, "right": right}}
