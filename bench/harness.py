"""Timing beside a baseline: cases take turns in one run, so that a busy neighbour meets all of them alike.

A case is a function that does the thing once and returns a Sample. Figures are medians (p50) of the rounds;
a ratio is of medians within one run. Nothing here knows banger.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """Milliseconds. cpu_ms: user and system time of what the case names; parts: pieces of wall_ms by name."""

    wall_ms: float
    cpu_ms: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


Case = Callable[[], Sample]


def rounds(cases: Mapping[str, Case], count: int) -> dict[str, list[Sample]]:
    """Every case `count` times, in turns, each round beginning with another; warm-up is dropped."""
    taken: dict[str, list[Sample]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(WARM_UP + count):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            sample = cases[name]()
            if number >= WARM_UP:
                taken[name].append(sample)
    return taken


def p50(values: Sequence[float]) -> float:
    return statistics.median(values)


def wall(samples: Sequence[Sample]) -> float:
    return p50([sample.wall_ms for sample in samples])


def timed(argv: Sequence[str], env: Mapping[str, str]) -> Sample:
    """Run a program that must end well; wall time, and its own and its children's CPU time."""
    began = time.perf_counter()
    process = subprocess.Popen(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _pid, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    said = process.stderr.read() if process.stderr else b""
    if process.stderr:
        process.stderr.close()
    if status:
        raise RuntimeError(f"{' '.join(argv)}: {process.returncode}: {said.decode('utf-8', 'replace')}")
    return Sample(elapsed * 1000, (usage.ru_utime + usage.ru_stime) * 1000)


def cpu_ms(pid: int) -> float:
    """CPU time of a process's living threads, from the scheduler: nanoseconds, where stat has 10 ms ticks.

    Neither its children nor threads that have ended are in it.
    """
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e6


def peak_kib(pid: int) -> int:
    """A process's largest resident size so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise RuntimeError("no VmHWM")


def table(taken: Mapping[str, Sequence[Sample]], *, baseline: str) -> str:
    """A Markdown table: p50, 90th percentile, ratio to the baseline, CPU, and the parts' medians."""
    base = wall(taken[baseline])
    lines = ["| case | p50 ms | p90 ms | ratio | cpu ms | parts (p50 ms) |", "|---|---|---|---|---|---|"]
    for name, samples in taken.items():
        walls = sorted(sample.wall_ms for sample in samples)
        parts = ", ".join(
            f"{part} {p50([sample.parts[part] for sample in samples]):.1f}" for part in samples[0].parts
        )
        lines.append(
            f"| {name} | {p50(walls):.1f} | {walls[int(0.9 * (len(walls) - 1))]:.1f}"
            f" | {p50(walls) / base:.2f}"
            f" | {p50([sample.cpu_ms for sample in samples]):.1f} | {parts} |"
        )
    return "\n".join(lines)
