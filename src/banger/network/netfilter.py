"""Which chain of other programs' firewalls would stop a packet: a careful reading of their rules. Pure.

For doctor and for the warning at a start, which must not send packets; `net why` has the kernel itself tell.
A rule is followed as far as it is understood. What is not (an extension of iptables, a mark, a rate) decides
nothing, except that a rule for the packet's own bridge is taken at its word: better to stay silent
than to accuse a firewall that has been told about banger. banger's own tables are left out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import msgspec

from banger.network.iptablesave import parse_save
from banger.system.firewalls import FirewallFacts

OURS = "banger_"
_DEPTH = 32
_FAMILIES = ("ip", "inet")
_ACCEPT, _DROP = "accept", "drop"
_NUMBERS = {1: "icmp", 6: "tcp", 17: "udp"}

Statement = dict[str, object]


class Absent:
    """Of a packet that has no such field: a match of it fails, whatever it asks."""


ABSENT = Absent()


@dataclass(frozen=True, slots=True)
class Packet:
    """hook: forward or input. answer: of a connection that is there, else it would begin one.
    ours: the bridge, which a rule may name."""

    hook: str
    iif: str
    oif: str
    source: IPv4Address
    target: IPv4Address
    protocol: str
    source_port: int
    port: int
    ours: str
    answer: bool = False


@dataclass(slots=True)
class Chain:
    name: str
    hook: str = ""
    policy: str = ""
    rules: list[list[Statement]] = field(default_factory=list)


@dataclass(slots=True)
class Table:
    """legacy: of old-style iptables, which nft does not show."""

    family: str
    name: str
    legacy: bool = False
    chains: dict[str, Chain] = field(default_factory=dict)
    elements: dict[str, list[object]] = field(default_factory=dict)
    """Of named sets and maps."""

    def chain(self, name: str) -> Chain:
        return self.chains.setdefault(name, Chain(name))


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a packet ends. by_policy: no rule, but what the chain does with the rest."""

    table: Table
    chain: str
    by_policy: bool


class _Listed(msgspec.Struct, frozen=True):
    nftables: list[dict[str, object]]


def read_tables(facts: FirewallFacts) -> list[Table]:
    """All but banger's. What is not as expected is passed over."""
    tables: dict[tuple[str, str], Table] = {}
    for kind, fields in _entries(facts.nft):
        name = str(fields.get("name" if kind == "table" else "table", ""))
        family = str(fields.get("family", ""))
        if not name or name.startswith(OURS):
            continue
        table = tables.setdefault((family, name), Table(family, name))
        if kind == "chain":
            chain = table.chain(str(fields.get("name", "")))
            chain.hook, chain.policy = str(fields.get("hook", "")), str(fields.get("policy", ""))
            if str(fields.get("type", "filter")) != "filter":
                chain.hook = ""
        elif kind == "rule":
            rule = [statement for statement in _list(fields.get("expr")) if isinstance(statement, dict)]
            table.chain(str(fields.get("chain", ""))).rules.append(rule)
        elif kind in ("set", "map"):
            table.elements[str(fields.get("name", ""))] = _list(fields.get("elem"))
    found = list(tables.values())
    if facts.legacy:
        legacy = Table("ip", "filter", legacy=True)
        for said in parse_save(facts.legacy):
            chain = legacy.chain(said.name)
            chain.policy = said.policy.lower()
            chain.hook = said.name.lower() if said.policy else ""
            chain.rules += said.rules
        found.append(legacy)
    return found


def stops(tables: Iterable[Table], packet: Packet) -> list[Stop]:
    """The chains that end the packet's way, one of each table at most: all have to be persuaded."""
    found: list[Stop] = []
    for table in tables:
        if table.family not in _FAMILIES:
            continue
        for chain in table.chains.values():
            if chain.hook != packet.hook:
                continue
            verdict, where = _Walk(table, packet).through(chain, 0)
            if verdict == _DROP:
                found.append(Stop(table, where, by_policy=False))
                break
            if verdict is None and chain.policy == _DROP:
                found.append(Stop(table, chain.name, by_policy=True))
                break
    return found


class _Walk:
    """One packet in one table."""

    def __init__(self, table: Table, packet: Packet) -> None:
        self._table = table
        self._packet = packet

    def through(self, chain: Chain, depth: int) -> tuple[str | None, str]:
        """accept or drop, and the chain that said so; None where the chain's end is reached."""
        if depth > _DEPTH:
            return _ACCEPT, chain.name
        for rule in chain.rules:
            verdict = self._rule(rule)
            if verdict is None:
                continue
            kind, target = verdict
            if kind in (_ACCEPT, _DROP):
                return kind, chain.name
            if kind == "return":
                return None, chain.name
            said, where = self.through(self._table.chains.get(target, Chain(target)), depth + 1)
            if said is not None:
                return said, where
            if kind == "goto":
                return None, chain.name
        return None, chain.name

    def _rule(self, rule: list[Statement]) -> tuple[str, str] | None:
        """What a rule does with the packet; None where it lets it go on."""
        sure, named = True, False
        for statement in rule:
            kind, body = next(iter(statement.items()), ("", None))
            if kind == "match" and isinstance(body, dict):
                fits = self._fits(body)
                if fits is False:
                    return None
                sure = sure and fits is True
                named = named or (fits is True and body.get("right") == self._packet.ours)
            elif kind == "xt":
                extension = body if isinstance(body, dict) else {}
                if extension.get("type") == "target":
                    if extension.get("name") in ("REJECT", "DROP", "TARPIT"):
                        return (_DROP, "") if sure else None
                elif extension.get("name") == "conntrack":
                    # nft does not say what it asks for: nearly always RELATED,ESTABLISHED
                    sure = sure and self._packet.answer
                elif extension.get("name") != "comment":
                    sure = False
            elif kind in ("limit", "quota", "meter", "ct count"):
                sure = False
            elif kind == "vmap" and isinstance(body, dict):
                decided = self._mapped(body)
                if decided is not None:
                    return decided if sure else None
            elif kind in (_ACCEPT, "jump", "goto", "return"):
                # a return that is not understood is taken: what follows in the chain may not be for it
                return (kind, _target(body)) if sure or named or kind == "return" else None
            elif kind in (_DROP, "reject"):
                return (_DROP, "") if sure else None
        return None

    def _mapped(self, body: dict[str, object]) -> tuple[str, str] | None:
        value = self._value(body.get("key"))
        data = body.get("data")
        pairs = _list(data.get("set")) if isinstance(data, dict) else self._named(data)
        for pair in pairs:
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict)):
                continue
            if self._holds(pair[0], value) is True:
                kind, target = next(iter(pair[1].items()), ("", None))
                return (_DROP if kind == "reject" else str(kind), _target(target))
        return None

    def _fits(self, body: dict[str, object]) -> bool | None:
        """None: cannot be told."""
        value = self._value(body.get("left"))
        if isinstance(value, Absent):
            return False
        held = self._holds(body.get("right"), value)
        operator = body.get("op")
        if held is None or operator not in ("==", "!=", "in"):
            return None
        return held is not (operator == "!=")

    def _value(self, left: object) -> object:
        """str, int, IPv4Address or frozenset; ABSENT; None where it is not known."""
        packet = self._packet
        kind, body = next(iter(left.items()), ("", None)) if isinstance(left, dict) else ("", None)
        if not isinstance(body, dict):
            return None
        key = str(body.get("key", body.get("field", "")))
        if kind == "meta":
            known: dict[str, object] = {
                "iifname": packet.iif,
                "iif": packet.iif,
                "oifname": packet.oif or ABSENT,
                "oif": packet.oif or ABSENT,
                "nfproto": "ipv4",
                "protocol": "ip",
                "l4proto": packet.protocol,
            }
            return known.get(key)
        if kind == "ct":
            tracked: dict[str, object] = {
                "state": frozenset({"established" if packet.answer else "new"}),
                "status": frozenset({"snat", "assured", "confirmed", "seen-reply"} if packet.answer else ()),
                "direction": "reply" if packet.answer else "original",
            }
            return tracked.get(key)
        return self._payload(str(body.get("protocol", "")), key) if kind == "payload" else None

    def _payload(self, protocol: str, key: str) -> object:
        packet = self._packet
        if protocol == "ip":
            fields: dict[str, object] = {
                "saddr": packet.source,
                "daddr": packet.target,
                "protocol": packet.protocol,
            }
            return fields.get(key)
        if protocol in (packet.protocol, "th"):
            return {"sport": packet.source_port, "dport": packet.port}.get(key)
        return ABSENT

    def _named(self, name: object) -> list[object]:
        return self._table.elements.get(name[1:], []) if isinstance(name, str) and name[:1] == "@" else []

    def _holds(self, right: object, value: object) -> bool | None:
        """Whether the value is what the right side means, or one of it."""
        if value is None:
            return None
        if isinstance(value, Absent):
            return False
        if isinstance(right, str) and right.startswith("@"):
            if right[1:] not in self._table.elements:
                return None
            right = self._named(right)
        if isinstance(right, dict):
            if "set" in right:
                right = _list(right["set"])
            elif "elem" in right and isinstance(right["elem"], dict):
                return self._holds(right["elem"].get("val"), value)
            else:
                return _within(right, value)
        if isinstance(right, list):
            return any(self._holds(each, value) is True for each in right)
        return _same(right, value)


def _same(right: object, value: object) -> bool | None:
    if isinstance(value, frozenset):
        return right in value
    if isinstance(value, IPv4Address):
        return str(value) == right
    if isinstance(right, int) and isinstance(value, str):
        return _NUMBERS.get(right) == value
    if isinstance(right, str) and isinstance(value, str) and right.endswith("*"):
        return value.startswith(right[:-1])
    return right == value if isinstance(right, (str, int)) else None


def _within(right: dict[str, object], value: object) -> bool | None:
    """A prefix or a range."""
    prefix, bounds = right.get("prefix"), right.get("range")
    try:
        if isinstance(prefix, dict) and isinstance(value, IPv4Address):
            return value in ipaddress.ip_network(f"{prefix['addr']}/{prefix['len']}", strict=False)
        if isinstance(bounds, list) and len(bounds) == 2:
            if isinstance(value, IPv4Address):
                return IPv4Address(bounds[0]) <= value <= IPv4Address(bounds[1])
            if isinstance(value, int):
                return int(bounds[0]) <= value <= int(bounds[1])
    except (KeyError, TypeError, ValueError):
        return None
    return None


def _target(body: object) -> str:
    return str(body.get("target", "")) if isinstance(body, dict) else ""


def _entries(listed: bytes) -> Iterable[tuple[str, dict[str, object]]]:
    try:
        found = msgspec.json.decode(listed, type=_Listed).nftables
    except msgspec.DecodeError:
        return
    for entry in found:
        for kind, fields in entry.items():
            if isinstance(fields, dict):
                yield kind, fields


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
