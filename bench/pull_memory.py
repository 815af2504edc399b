"""The daemon's memory while `banger image pull` brings ten times the bytes, and ten times the entries.

One gzip layer of files that do not compress, from a docker-registry on loopback. Peak: VmHWM of a daemon that
was started for this one pull; by entry: what ten times the entries add, divided by them. Entries need memory
by their nature (names, owners and places are held until the tree is written), bytes do not. One round.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.harness import peak_kib
from bench.home import Home, home
from tests.artifacts import artifacts
from tests.fakes.ociregistry import registry
from tests.fakes.pushed import layer_of, upload

PORT = 5000
MIB = 1 << 20


@dataclass(frozen=True)
class Shape:
    name: str
    files: int
    mib: int


SMALL = Shape("small", 10_000, 20)
SHAPES = (SMALL, Shape("10 × the bytes", 10_000, 200), Shape("10 × the entries", 100_000, 20))


def measure(made: Home, address: str, shape: Shape) -> tuple[int, int, float]:
    """(before, peak) in KiB, and seconds."""
    made.run("daemon", "stop")
    upload(address, "shape", [layer_of(shape.files, shape.mib * MIB)])
    made.run("image", "list")
    daemon = made.daemon_pid()
    before = peak_kib(daemon)
    began = time.perf_counter()
    made.run("image", "pull", f"{address}/shape")
    elapsed = time.perf_counter() - began
    peak = peak_kib(daemon)
    made.run("image", "delete", "shape")
    made.run("image", "cache", "prune")
    return before, peak, elapsed


def run(_count: int) -> str:
    folder = Path(tempfile.mkdtemp(prefix="bench-memory-", dir=artifacts().home.parent))
    try:
        with registry(folder / "registry", port=PORT) as address, home() as made:
            made.run("image", "list")  # starts a daemon
            taken = {shape: measure(made, address, shape) for shape in SHAPES}
    finally:
        shutil.rmtree(folder)
    base = taken[SMALL][1]
    lines = [
        "| image | files | MiB | daemon before, MiB | peak MiB | ratio | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape, (before, peak, elapsed) in taken.items():
        row = f"| {shape.name} | {shape.files} | {shape.mib} | {before / 1024:.0f} | {peak / 1024:.0f}"
        lines.append(f"{row} | {peak / base:.2f} | {elapsed:.1f} |")
    by_entry = (taken[SHAPES[2]][1] - base) * 1024 / (SHAPES[2].files - SMALL.files)
    return "\n".join(lines) + f"\n\nBy entry: {by_entry:.0f} bytes."
