"""Following one guest's packets through the host's firewalls, for `net why`: the tables that mark them.

A pair of tables of a trace's own (`banger_<instance>_why<8 hex>`), for some seconds. Their first chains mark
the flow's packets and the answers to them; the others are empty: that a packet came through one of these
says how far it got, also where something that nftables does not show took it (iptables-legacy, the route).
After a crash the tables stay, with the instance's mark: reconcile and `host audit` remove them.
"""

from __future__ import annotations

import msgspec

from banger.helper import marks
from banger.helper.ruleset import removal as table_removal
from banger.model.netwhy import Flow, Protocol, TraceEvent
from banger.system import nft, nftrace

FAMILIES = ("bridge", "inet")
_BEFORE, _AFTER = -450, 1000000
"""Before conntrack's own (-400) and any filter; behind them all."""
_TRACKED = -199
"""Just behind conntrack (-200): only then is an answer known to be one."""
_MOST_TABLES = 24
_ARP, _ICMP = 0, 1


def ruleset(table: str, flow: Flow) -> str:
    packet = f"ip saddr {flow.guest} ip daddr {flow.target}"
    name = flow.protocol.value
    answer = f"ct direction reply ct original ip saddr {flow.guest} ct original ip daddr {flow.target}"
    answers = [f"{answer} meta l4proto icmp"]  # also the errors that routers send about it
    if flow.protocol is Protocol.ICMP:
        packet += f" icmp type echo-request icmp id {flow.source}"
    else:
        packet += f" {name} sport {flow.source} {name} dport {flow.port}"
        ports = f"ct original proto-src {flow.source} ct original proto-dst {flow.port}"
        answers.append(f"{answer} meta l4proto {name} {ports}")
    mark = "meta nftrace set 1"
    bridge = (
        _chain("first", "prerouting", _BEFORE, f"ether type ip {packet} {mark}", _asks(flow, mark))
        + _chain("input", "input", _AFTER)
        + _chain("forward", "forward", _AFTER)
        + _chain("last", "postrouting", _AFTER)
    )
    inet = (
        _chain("first", "prerouting", _BEFORE, f"{packet} {mark}")
        + _chain("answers", "prerouting", _TRACKED, *(f"{rule} {mark}" for rule in answers))
        + _chain("prerouting", "prerouting", _AFTER)
        + _chain("to_host", "input", _BEFORE)
        + _chain("input", "input", _AFTER)
        + _chain("to_forward", "forward", _BEFORE)
        + _chain("forward", "forward", _AFTER)
        + _chain("own_answers", "output", _TRACKED, *(f"{rule} {mark}" for rule in answers))
        + _chain("output", "output", _AFTER)
        + _chain("last", "postrouting", _AFTER)
    )
    return f"table bridge {table} {{\n{bridge}}}\ntable inet {table} {{\n{inet}}}\n"


def removal(table: str) -> str:
    return "".join(table_removal((family, table)) for family in FAMILIES)


def _asks(flow: Flow, mark: str) -> str:
    """Whatever MAC or address it says: that may be what is wrong."""
    wanted = ", ".join(sorted({flow.gateway, flow.target}))
    return f'iifname "{flow.tap}" ether type arp arp daddr ip {{ {wanted} }} {mark}'


def _chain(name: str, hook: str, priority: int, *rules: str) -> str:
    lines = "".join(f"\t\t{rule}\n" for rule in rules)
    return (
        f"\tchain {name} {{\n\t\ttype filter hook {hook} priority {priority}; policy accept;\n{lines}\t}}\n"
    )


class Traces:
    """The traces that run now, each with its socket and its tables."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._running: dict[str, tuple[Flow, nftrace.Tracer]] = {}

    def tables(self) -> frozenset[str]:
        """Names that are in use: nothing that was left over."""
        return frozenset(self._running)

    async def begin(self, flow: Flow) -> str:
        table = marks.trace_table(self._instance)
        self._running[table] = (flow, nftrace.Tracer())
        try:
            await nft.apply(ruleset(table, flow))
        except BaseException:
            await self._drop(table)
            raise
        return table

    async def end(self, token: str) -> tuple[TraceEvent, ...]:
        """What was seen. () of a trace that has ended."""
        if token not in self._running:
            return ()
        flow, tracer = self._running[token]
        try:
            heard = tracer.heard()
        finally:
            await self._drop(token)
        return await _worded(_own(heard, flow))

    async def close(self) -> None:
        for token in list(self._running):
            await self._drop(token)

    async def _drop(self, token: str) -> None:
        """The tables first: what is in `tables()` is explained."""
        _, tracer = self._running[token]
        tracer.close()
        try:
            await nft.apply(removal(token))
        finally:
            self._running.pop(token, None)


def _own(events: list[TraceEvent], flow: Flow) -> list[TraceEvent]:
    """Others may trace packets of their own meanwhile, other `net why` too. A packet is the flow's when it
    has the flow's addresses and ports anywhere; behind NAT it has others."""
    packets = {event.packet for event in events if _is_of(event, flow)}
    return [event for event in events if event.packet in packets]


def _is_of(event: TraceEvent, flow: Flow) -> bool:
    if event.protocol == _ARP:
        return event.source == flow.guest or event.target in (flow.gateway, flow.target)
    if event.source == flow.guest:
        return event.source_port == flow.source
    if flow.guest == event.target or event.source == flow.target:
        # an error about it carries no ports
        return event.target_port == flow.source or (event.protocol == _ICMP and not event.target_port)
    return False


async def _worded(events: list[TraceEvent]) -> tuple[TraceEvent, ...]:
    """With the text of the rules, as far as they are still there."""
    wanted = {(event.family, event.table) for event in events if event.handle}
    wanted = {(family, table) for family, table in wanted if not marks.is_trace_table(table)}
    texts = {key: await nftrace.rules_of(*key) for key in sorted(wanted)[:_MOST_TABLES]}
    return tuple(
        msgspec.structs.replace(
            event, rule=texts.get((event.family, event.table), {}).get((event.chain, event.handle), "")
        )
        for event in events
    )
