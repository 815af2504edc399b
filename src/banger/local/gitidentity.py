"""Who the user is to git: `user.name` and `user.email` of their own configuration, for a new guest's.

Asked by the CLI, as the user (under sudo: as the caller), of git itself, with no repository in sight. A user
without a configuration costs no program and no import. Writes nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from banger.errors import BangerError
from banger.local.account import Account, as_user, this_account

if TYPE_CHECKING:
    from banger.system.run import Completed

TIMEOUT_S = 10.0
MAX_TEXT = 1000
"""The daemon takes no more."""


def request_owner(account: Account | None = None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the `owner` of a request for a VM, a line each on what could not be used). Blocking."""
    account = this_account() if account is None else account
    owner: dict[str, Any] = {"uid": os.geteuid() if account.uid is None else account.uid}
    if not _has_configuration(account):
        return owner, ()
    notes: list[str] = []
    try:
        found = _ask(account)
    except (BangerError, OSError) as error:
        said = error.brief if isinstance(error, BangerError) else f"{error.strerror or error}"
        return owner, (f"the guest gets no git identity: {said}",)
    for key, field in (("user.name", "git_name"), ("user.email", "git_email")):
        value = found.get(key, "")
        if not value:
            continue
        if len(value) > MAX_TEXT or not all(letter.isprintable() for letter in value):
            notes.append(f"git's {key} is not a name that a guest can be given")
        else:
            owner[field] = value
    return owner, tuple(notes)


def _has_configuration(account: Account) -> bool:
    own = account.env.get("GIT_CONFIG_GLOBAL")
    if own is not None:
        return os.path.exists(own)
    config = account.env.get("XDG_CONFIG_HOME") or f"{account.home}/.config"
    return any(map(os.path.exists, (f"{account.home}/.gitconfig", f"{config}/git/config")))


def _ask(account: Account) -> dict[str, str]:
    import asyncio

    # no variable of git's but where the configuration is: they can name a repository
    env = {k: v for k, v in account.env.items() if not k.startswith("GIT_") or k == "GIT_CONFIG_GLOBAL"}
    done = asyncio.run(_git(account, env))
    found: dict[str, str] = {}
    for entry in done.stdout.decode("utf-8", "replace").split("\0"):
        key, _, value = entry.partition("\n")
        found[key] = value  # the last one counts, as for git
    return found


async def _git(account: Account, env: dict[str, str]) -> Completed:
    from banger.system.errors import CommandError
    from banger.system.run import run

    argv = ["git", "config", "--global", "--includes", "-z", "--get-regexp", r"^user\.(name|email)$"]
    done = await run(as_user(argv, account), timeout_s=TIMEOUT_S, env=env, cwd="/", check=False)
    if done.status not in (0, 1):  # 1: neither is set
        raise CommandError(done.argv, done.status, stderr=done.stderr)
    return done
