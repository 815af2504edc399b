"""`python -m banger.daemon`, or this file by its path: then the package beside it is the one that runs.

With --detached the process leaves its starter before anything heavy is imported: a child in a session of
its own goes on, the parent ends at once, so that no zombie of a daemon hangs on a long-lived `vm run`.
"""

from __future__ import annotations

import os
import sys

if not __package__:
    package = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    sys.path.insert(0, os.path.dirname(package))

if __name__ == "__main__":
    if "--detached" in sys.argv[1:]:
        if os.fork():
            os._exit(0)
        os.setsid()
    from banger.daemon.main import main

    sys.exit(main())
