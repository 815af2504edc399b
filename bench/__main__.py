"""`python -m bench [-n ROUNDS] [NAME …]`: takes the figures, as root, in a network namespace of its own.

Prints Markdown and keeps it as bench/results/NAME.md (not in git).
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import subprocess
import sys
from pathlib import Path

NAMES = (
    "vm_list",
    "start",
    "run_true",
    "known",
    "copy",
    "exec",
    "net",
    "many",
    "ports",
    "pull",
    "pull_memory",
    "workdisk",
    "workspace_disk",
)
RESULTS = Path(__file__).parent / "results"
INSIDE = "BANGER_BENCH_NAMESPACE"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-n", type=int, default=30, metavar="ROUNDS", help="rounds of each case (30)")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"no bench {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", "bench", *sys.argv[1:]])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=30)
    # what the Makefile names is for `banger`; a bench makes homes of its own beside it
    os.environ.pop("BANGER_HOME", None)
    RESULTS.mkdir(exist_ok=True)
    for name in options.names or NAMES:
        bench = importlib.import_module(f"bench.{name}")
        head = f"## {name}\n\n{(bench.__doc__ or '').strip()}\n\n"
        where = (
            f"\n\nPython {platform.python_version()}, Linux {platform.release()}, "
            f"{os.cpu_count()} cpus, load {os.getloadavg()[0]:.1f}, {options.n} rounds.\n"
        )
        text = head + bench.run(options.n) + where
        print(text, flush=True)
        (RESULTS / f"{name}.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
