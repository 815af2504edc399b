"""Fuzz the agent for longer: python -m tests.fuzz [--seconds N] [TARGET …]; `make fuzz SECONDS=600` does so.

The time is for all targets together, two run at a time. Inputs that reach something new are kept in
agent/build/corpus, so that the next run goes on from there. Exits with 1 when something was found.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz import agent

CORPUS = agent.BUILD / "corpus"
AT_ONCE = 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=" ".join(agent.targets()))
    asked = parser.parse_args()
    chosen = asked.targets or agent.targets()
    if unknown := set(chosen) - set(agent.targets()):
        parser.error(f"no such target: {' '.join(sorted(unknown))}")
    each = max(1, asked.seconds * AT_ONCE // len(chosen))
    agent.program()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = list(pool.map(lambda target: agent.run(target, CORPUS / target, seconds=each), chosen))
    print(f"{'target':<10}{'inputs':>12}{'edges':>8}{'features':>10}  found")
    for run in runs:
        print(f"{run.target:<10}{run.inputs:>12,}{run.edges:>8}{run.features:>10}  {_verdict(run)}")
    print(f"{'in all':<10}{sum(run.inputs for run in runs):>12,}")
    for run in runs:
        if run.found is not None:
            print(f"\n--- {run.target}: {run.found!r}\n{run.output[-5000:]}")
    return any(run.found is not None for run in runs)


def _verdict(run: agent.Run) -> str:
    return "nothing" if run.found is None else f"an input of {len(run.found)} bytes, below"


if __name__ == "__main__":
    sys.exit(main())
