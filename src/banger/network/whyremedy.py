"""Whose rule stopped a traced packet, and what to do: asks network/neighbours.py about the event. Pure."""

from __future__ import annotations

from banger.model.netwhy import Probe, TraceEvent
from banger.network.neighbours import Drop, Program, What, program_of, remedy

_DNS = 53


def program_and_remedy(
    drop: TraceEvent, probe: Probe, *, bridge: str, bridge_ip: str, answer: bool
) -> tuple[Program, str]:
    """answer: what was dropped is one. The table's chains are those that the packets came through."""
    chains = {
        event.chain for event in probe.trace or () if (event.family, event.table) == (drop.family, drop.table)
    } | {drop.chain}
    program = program_of(drop.family, drop.table, chains=chains)
    whats = _stopped(drop, probe, program, to=(bridge, bridge_ip), answer=answer)
    drops = [Drop(what, drop.family, drop.table, drop.chain) for what in whats]
    return program, remedy(program, drops, bridge=bridge, bridge_ip=bridge_ip, chains=chains)


def _stopped(
    drop: TraceEvent, probe: Probe, program: Program, *, to: tuple[str, str], answer: bool
) -> tuple[What, ...]:
    bridge, bridge_ip = to
    if answer:
        return (What.BACK,)
    if drop.oif == bridge:
        return (What.BETWEEN,)
    if not drop.oif:
        asks = (probe.flow.target, probe.flow.port) == (bridge_ip, _DNS)
        return (What.DNS if asks else What.HOST,)
    if program is Program.UFW:
        return (What.OUT,)  # it lets answers in by itself
    return (What.OUT, What.BACK)  # whether the answers would pass, no trace has shown
