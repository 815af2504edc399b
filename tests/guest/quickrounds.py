"""A daemon whose round over the work in workspaces comes every second: `python -m tests.guest.quickrounds`.

In the foreground, on the paths of its environment, as `banger daemon run` is.
"""

from __future__ import annotations

import sys
from functools import partial

from banger.config.paths import resolve_paths
from banger.daemon.compose import compose
from banger.daemon.main import run

if __name__ == "__main__":
    sys.exit(run(resolve_paths(), compose=partial(compose, keep_interval_s=1.0), detached=False))
