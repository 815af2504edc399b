"""Whose files, configuration and helper programs the CLI works with: the user's, under sudo the caller's.

Only the standard library, and little of it: `vm run` asks on its way to a guest. Writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Account(NamedTuple):
    """env: the user's own; uid, gid: None where they are this process's."""

    home: str
    env: dict[str, str]
    uid: int | None = None
    gid: int | None = None


def this_account(environ: Mapping[str, str] | None = None, *, euid: int | None = None) -> Account:
    """This user's; under sudo (root with SUDO_UID) the caller's, without the variables that are root's."""
    env = dict(os.environ) if environ is None else dict(environ)
    euid = os.geteuid() if euid is None else euid
    caller = env.get("SUDO_UID", "")
    if euid == 0 and caller.isascii() and caller.isdigit() and caller != "0":
        import pwd

        try:
            user = pwd.getpwuid(int(caller))
        except (KeyError, OverflowError, ValueError):
            user = None
        if user is not None:
            own = {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
            kept: dict[str, str] = {
                key: env[key] for key in ("PATH", "LANG", "TERM", "DISPLAY") if key in env
            }
            runtime = f"/run/user/{user.pw_uid}"
            return Account(
                home=user.pw_dir,
                env={
                    **kept,
                    **own,
                    "XDG_RUNTIME_DIR": runtime,
                    "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus",  # where keyrings answer
                },
                uid=user.pw_uid,
                gid=user.pw_gid,
            )
    return Account(home=env.get("HOME", ""), env=env)


def as_user(argv: Sequence[str], account: Account) -> list[str]:
    """What runs a program as the account's user."""
    if account.uid is None:
        return list(argv)
    return ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--init-groups", "--", *argv]
