"""A replacement of the firewall's tables with 1, 100 and 1,000 guests, against `nft -f` of an empty table.

What a start, a stop and `vm set --nat` pay; and a look for drift (`host audit`). Aim: flat enough that the
tables can be replaced whole, with 1,000 guests in under 50 ms.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator

from banger.config.paths import resolve_paths
from banger.helper.inprocess import InProcessHelper
from banger.helper.interface import FirewallRules, GuestRule
from banger.network.addresses import mac_of
from banger.system import nft
from bench.harness import Case, Sample, rounds, table

SIZES = (1, 100, 1000)
EMPTY = "nft -f of an empty table"


def rules_of(guests: int, *, turn: int) -> FirewallRules:
    """Half of them with NAT; with each turn another one has."""
    made = []
    for number in range(guests):
        address = f"10.20.{2 + number // 200}.{1 + number % 200}"
        nat = (number + turn) % 2 == 0
        made.append(GuestRule(tap=f"tap-pool-{number}", mac=mac_of(address), address=address, nat=nat))
    return FirewallRules(bridge="br-fc", address="10.20.0.1", guests=tuple(made))


def run(count: int) -> str:
    helper = InProcessHelper("0" * 16, resolve_paths({"BANGER_HOME": "/nonexistent"}))
    turns: Iterator[int] = itertools.count()

    async def empty() -> None:
        await nft.apply("table inet empty\ndelete table inet empty\ntable inet empty {\n}\n")

    def replace(guests: int) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            await helper.apply_firewall(rules_of(guests, turn=next(turns)))

        return work

    def look(guests: int) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            if await helper.firewall_drift(rules_of(guests, turn=0)):
                raise RuntimeError("the tables are not as they were made")

        return work

    with asyncio.Runner() as runner:

        def case(work: Callable[[], Awaitable[None]], *, guests: int = 0) -> Case:
            def once() -> Sample:
                async def timed() -> float:
                    began = time.perf_counter()
                    await work()
                    return time.perf_counter() - began

                if guests:  # what is looked at
                    runner.run(helper.apply_firewall(rules_of(guests, turn=0)))
                before = os.times()
                wall = runner.run(timed())
                after = os.times()
                cpu = sum(after[:4]) - sum(before[:4])
                return Sample(wall * 1000, cpu * 1000)

            return once

        cases = {EMPTY: case(empty)}
        cases |= {f"replace, {guests} guests": case(replace(guests)) for guests in SIZES}
        cases |= {f"look for drift, {guests} guests": case(look(guests), guests=guests) for guests in SIZES}
        taken = rounds(cases, count)
        runner.run(helper.remove_firewall())
        runner.run(nft.apply("delete table inet empty\n"))
        runner.run(helper.close())
    return table(taken, baseline=EMPTY)
