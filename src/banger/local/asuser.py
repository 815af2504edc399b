"""Work with files by the user's own rights: under sudo the CLI is root, and the files are the caller's.

What root reads in a folder of a user's could be swapped for something that only root may read; where root may
not (a FUSE mount, a home on NFS), the user may. Leaves nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from banger.local.account import Account


@contextlib.contextmanager
def acting_as(account: Account) -> Iterator[None]:
    """This process has the account's effective ids until the end of the `with`: start no program in it."""
    if account.uid is None or account.gid is None or os.geteuid() == account.uid:
        yield
        return
    from banger.system.effective import effective

    with effective(account.uid, account.gid):
        yield
