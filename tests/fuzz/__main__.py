"""Fuzz for longer: python -m tests.fuzz [--seconds N] [TARGET …]; `make fuzz SECONDS=600` does so.

The time is for all targets together, the agent's and the image readers', two run at a time. Inputs that reach
something new are kept in agent/build/corpus, so that the next run goes on from there. Exits with 1 when
something was found.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz import agent, image
from tests.fuzz.libfuzzer import Fuzzer, Run

CORPUS = agent.BUILD / "corpus"
AT_ONCE = 2


def main() -> int:
    known: dict[str, Fuzzer] = dict.fromkeys(agent.targets(), agent.FUZZER)
    known |= {f"image-{target}": image.FUZZER for target in image.targets()}
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=" ".join(known))
    asked = parser.parse_args()
    chosen = asked.targets or list(known)
    if unknown := set(chosen) - set(known):
        parser.error(f"no such target: {' '.join(sorted(unknown))}")
    each = max(1, asked.seconds * AT_ONCE // len(chosen))
    if any(known[name] is agent.FUZZER for name in chosen):
        agent.program()

    def fuzz(name: str) -> Run:
        return known[name].run(name.removeprefix("image-"), CORPUS / name, seconds=each)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = dict(zip(chosen, pool.map(fuzz, chosen), strict=True))
    print(f"{'target':<18}{'inputs':>12}{'edges':>8}{'features':>10}  found")
    for name, run in runs.items():
        print(f"{name:<18}{run.inputs:>12,}{run.edges:>8}{run.features:>10}  {_verdict(run)}")
    print(f"{'in all':<18}{sum(run.inputs for run in runs.values()):>12,}")
    for name, run in runs.items():
        if run.found is not None:
            print(f"\n--- {name}: {run.found!r}\n{run.output[-5000:]}")
    return any(run.found is not None for run in runs.values())


def _verdict(run: Run) -> str:
    return "nothing" if run.found is None else f"an input of {len(run.found)} bytes, below"


if __name__ == "__main__":
    sys.exit(main())
