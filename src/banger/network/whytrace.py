"""Reading a packet's trace: how far it and its answer got, which rule took it, through which tables. Pure.

Used by network/why.py. The markers are the chains of a trace's own tables (helper/tracing.py): that a packet
came through one says where it was, whatever other programs' rules say.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from banger.helper.marks import is_nft_table, is_trace_table
from banger.model.netwhy import NetRule, Probe, TraceEvent

ARP = 0


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """marks: "<family> <marker>" of all that it came through. drop: the event that ended it, if one is shown;
    arp_drop: likewise of its ARP, of which the bridge shows a copy to every port.
    tables: those of other programs and banger's, in its order, with the last thing that each said of it."""

    marks: frozenset[str] = frozenset()
    drop: TraceEvent | None = None
    arp_drop: TraceEvent | None = None
    tables: tuple[TraceEvent, ...] = ()
    source: str = ""  # at the last place
    out: str = ""  # the link that it left by, "" where it did not

    @property
    def seen(self) -> bool:
        return bool(self.marks)

    @property
    def sent(self) -> bool:
        """More than a question for a MAC."""
        return self.at("bridge first", "inet first")

    def at(self, *markers: str) -> bool:
        return any(marker in self.marks for marker in markers)


def forth(probe: Probe) -> Way:
    """What the guest sent, ARP included."""
    return _way([event for event in probe.trace or () if not _is_answer(event, probe)])


def back(probe: Probe) -> Way:
    """What came back: the target's answer, or somebody's error about it."""
    return _way([event for event in probe.trace or () if _is_answer(event, probe)])


def answerers(probe: Probe) -> tuple[TraceEvent, ...]:
    """A packet of each who answered, as it was first seen."""
    found: dict[str, TraceEvent] = {}
    for event in probe.trace or ():
        if _is_answer(event, probe) and event.source:
            found.setdefault(event.source, event)
    return tuple(found.values())


def rule_of(event: TraceEvent) -> NetRule:
    return NetRule(
        family=event.family,
        table=event.table,
        chain=event.chain,
        verdict=event.verdict,
        handle=event.handle,
        rule=event.rule,
    )


def is_own(event: TraceEvent) -> bool:
    """Of some banger's firewall."""
    return is_nft_table(event.table)


def comment_of(event: TraceEvent) -> str:
    """What the rule says of itself."""
    _, found, rest = event.rule.partition('comment "')
    return rest.partition('"')[0] if found else ""


def words_of(event: TraceEvent) -> str:
    """`table ip filter, chain FORWARD: policy drop`"""
    what = event.rule or (f"rule {event.handle}" if event.handle else f"policy {event.verdict}")
    return f"table {event.family} {event.table}, chain {event.chain}: {what}"


def _is_answer(event: TraceEvent, probe: Probe) -> bool:
    flow = probe.flow
    if event.protocol == ARP:
        return False
    return event.source == flow.target or (event.target == flow.guest and event.source != flow.guest)


def _way(events: Sequence[TraceEvent]) -> Way:
    marks: set[str] = set()
    drops: dict[bool, TraceEvent] = {}
    tables: dict[tuple[str, str], TraceEvent] = {}
    source = out = ""
    for event in events:
        if is_trace_table(event.table):
            kind = "arp" if event.protocol == ARP else event.family
            marks.add(f"{kind} {event.chain}")
            if event.chain == "last" and event.protocol != ARP:
                source, out = event.source, event.oif
            continue
        key = (event.family, event.table)
        if event.verdict == "drop":
            drops.setdefault(event.protocol == ARP, event)
        if event.protocol == ARP:
            continue
        if tables.get(key, event).verdict != "drop" and (event.handle or event.verdict in ("drop", "accept")):
            tables.pop(key, None)
            tables[key] = event
    return Way(
        marks=frozenset(marks),
        drop=drops.get(False),
        arp_drop=drops.get(True),
        tables=tuple(tables.values()),
        source=source,
        out=out,
    )
