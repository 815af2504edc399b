"""Another user's effective ids for this whole process, for as long as files are worked with.

For local/asuser.py: under sudo the CLI is root, and the files are the caller's. No program is started and no
other thread works with files meanwhile. A crash leaves nothing.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator


@contextlib.contextmanager
def effective(uid: int, gid: int) -> Iterator[None]:
    """Effective user, group and groups are that user's until the end of the `with`. Root only."""
    own_uid, own_gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    try:
        os.initgroups(pwd.getpwuid(uid).pw_name, gid)
        os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(own_uid)
        os.setegid(own_gid)
        os.setgroups(groups)
