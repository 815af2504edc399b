"""The gate for git in the user's repository: their git, as them, and nothing of the repository's is run.

For local/git*.py. Hooks, filter drivers, fsmonitor, external diffs, credential helpers, prompts, pagers,
background upkeep, lazy fetches and every transport are off. What git may still read is configuration; what of
it would run a program is overridden where that is possible at all, and the commands that would need the rest
(anything that converts or compares content, anything that talks to a repository) are run on a repository of
banger's own instead (`Scratch`), which has none of the user's configuration. Leaves nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from banger.errors import BangerError, ErrorCode
from banger.local.account import Account, as_user, this_account

if TYPE_CHECKING:
    from banger.system.run import Completed

QUICK_S = 120.0
"""A question about names, refs or the index."""
LONG_S = 3600.0
"""Packing a history: a large one on a slow disk takes its time, and Ctrl-C ends it."""
OUTPUT_LIMIT = 1 << 30
_FOR_FINDING = frozenset(
    {"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"}
    | {"GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM"}
)
"""Of git's own variables those that say where things are, and name no repository and no program."""
_QUIET = {
    "LC_ALL": "C",
    "LANGUAGE": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "false",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_PAGER": "cat",
    "GIT_EDITOR": "false",
    "GIT_TRACE2": "0",
    "GIT_TRACE2_EVENT": "0",
    "GIT_TRACE2_PERF": "0",
}
_OFF = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=keep",
    "core.alternateRefsCommand=true",
    "core.pager=cat",
    "core.askPass=false",
    "credential.helper=",
    "diff.external=",
    "fetch.recurseSubmodules=no",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "log.showSignature=false",
    "advice.detachedHead=false",
)
_OWN = (
    "core.fsync=none",  # a scratch repository need not outlive a power cut
    "core.safecrlf=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.bigFileThreshold=64m",
    "pack.compression=1",  # it goes over a socket to a guest on the same machine
    "pack.window=0",  # what is a delta stays one; making new ones costs more than it saves here
    "gc.auto=0",
)


class GitFailed(BangerError):
    """git said no. message: its own last words."""

    def __init__(self, argv: Sequence[str], status: int, stderr: bytes) -> None:
        said = stderr.decode("utf-8", "replace").strip()
        lines = [line for line in said.splitlines() if line.startswith(("fatal:", "error:"))]
        last = (lines or said.splitlines() or [f"it ended with {status}"])[0]
        self.status = status
        self.message = last.partition(": ")[2] if last.startswith(("fatal:", "error:")) else last
        verb = argv[argv.index("--no-pager") + 1 :]
        while verb and verb[0] == "-c":
            verb = verb[2:]
        super().__init__(
            ErrorCode.COMMAND_FAILED,
            f"git {verb[0] if verb else ''}: {self.message[:300]}",
            details=said[-4000:],
        )


class Git:
    """git in the repository at (or above) `path`. drivers: names of filter drivers to be overridden."""

    def __init__(self, path: str, account: Account | None = None, *, drivers: Sequence[str] = ()) -> None:
        self.path = path
        self.account = this_account() if account is None else account
        self._env = _user_environment(self.account, drivers)

    def run(
        self,
        *argv: str,
        input: bytes | None = None,
        ok: Sequence[int] = (0,),
        timeout_s: float = QUICK_S,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """One command that only reads. GitFailed when its status is not one of `ok`."""
        whole = ["git", "-C", self.path, "--no-pager", *_settings(_OFF), *argv]
        return _run(whole, self.account, {**self._env, **(env or {})}, input, ok, timeout_s)

    def text(self, *argv: str) -> str:
        """A command's one line; "" when it has none to say (status 1)."""
        done = self.run(*argv, ok=(0, 1))
        return os.fsdecode(done.stdout).removesuffix("\n") if done.status == 0 else ""


class Scratch:
    """git in a repository of banger's own, with no configuration but that one's."""

    def __init__(self, folder: str, account: Account, *, objects: str = "") -> None:
        """objects: the user's object folder, whose objects count as this repository's."""
        self.folder = folder
        self.account = account
        kept = ("PATH", "USER", "LOGNAME", "TMPDIR")
        self._env = {
            **{key: account.env[key] for key in kept if key in account.env},
            **_QUIET,
            "LANG": "C",
            "HOME": "/dev/null",
            "XDG_CONFIG_HOME": "/dev/null",
            "GIT_DIR": folder,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_ALLOW_PROTOCOL": "none",
            "GIT_AUTHOR_NAME": "banger",
            "GIT_AUTHOR_EMAIL": "banger@localhost",
            "GIT_COMMITTER_NAME": "banger",
            "GIT_COMMITTER_EMAIL": "banger@localhost",
        }
        if objects:
            self._env["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = _quoted(objects)

    def run(
        self,
        *argv: str,
        tree: str = "",
        index: str = "",
        input: bytes | None = None,
        ok: Sequence[int] = (0,),
        timeout_s: float = LONG_S,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """tree: the work tree it is about, where that matters. index: instead of its own."""
        extra = dict(env or {})
        if tree:
            extra["GIT_WORK_TREE"] = tree
        if index:
            extra["GIT_INDEX_FILE"] = index
        off = _settings((*_OFF, *_OWN))
        whole = ["git", "-C", tree or self.folder, "--no-pager", *off, *argv]
        return _run(whole, self.account, {**self._env, **extra}, input, ok, timeout_s)

    def line(self, *argv: str, tree: str = "", index: str = "", env: Mapping[str, str] | None = None) -> str:
        return self.run(*argv, tree=tree, index=index, env=env).stdout.decode("ascii").strip()


def _settings(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("-c", setting)]


def _user_environment(account: Account, drivers: Sequence[str]) -> dict[str, str]:
    dropped = ("GIT_", "SSH_ASKPASS")
    env = {
        key: value for key, value in account.env.items() if key in _FOR_FINDING or not key.startswith(dropped)
    }
    # in the environment, as a driver's name may hold an =
    filters = [
        (f"filter.{driver}.{key}", value)
        for driver in drivers
        for key, value in (("clean", ""), ("smudge", ""), ("process", ""), ("required", "false"))
    ]
    for number, (key, value) in enumerate(filters):
        env[f"GIT_CONFIG_KEY_{number}"] = key
        env[f"GIT_CONFIG_VALUE_{number}"] = value
    if filters:
        env["GIT_CONFIG_COUNT"] = str(len(filters))
    return {**env, **_QUIET, "GIT_ALLOW_PROTOCOL": "none"}


def _quoted(path: str) -> str:
    """One entry of a list of paths that has colons between them."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _run(
    argv: list[str],
    account: Account,
    env: Mapping[str, str],
    input: bytes | None,
    ok: Sequence[int],
    timeout_s: float,
) -> Completed:
    import asyncio

    from banger.system.run import resolve_program, run

    resolve_program("git")  # behind setpriv it would only be its status 127
    done = asyncio.run(
        run(
            as_user(argv, account),
            timeout_s=timeout_s,
            cwd="/",
            env=env,
            input=input,
            check=False,
            output_limit=OUTPUT_LIMIT,
        )
    )
    if done.status not in ok:
        raise GitFailed(argv, done.status, done.stderr)
    if done.truncated:
        raise BangerError(
            ErrorCode.COMMAND_FAILED, "git says more than can be taken: the repository is too large"
        )
    return done
