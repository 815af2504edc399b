"""Work with files by the user's own rights: under sudo the CLI is root, and the files are the caller's.

What root reads in a folder of a user's could be swapped for something that only root may read; where root may
not (a FUSE mount, a home on NFS), the user may. The switch is the whole process's: no program is started, and
no other thread works with files meanwhile. A crash leaves nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from banger.local.account import Account


@contextlib.contextmanager
def acting_as(account: Account) -> Iterator[None]:
    """This process's effective user, group and groups are the account's until the end of the `with`."""
    if account.uid is None or account.gid is None or os.geteuid() == account.uid:
        yield
        return
    import pwd

    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    try:
        os.initgroups(pwd.getpwuid(account.uid).pw_name, account.gid)
        os.setegid(account.gid)
        os.seteuid(account.uid)
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)
