"""A repository whose work is to be kept: git there, in a guest or in files that were staged on the host.

Used by workspace/. What a Repository answers comes from a guest: every caller checks it. GuestRepository
runs the guest's git through the agent; HostRepository runs the host's, with a configuration of ours only
(workspace/hostrepository). A crash leaves scratch folders: in the guest below /run, on the host in the
staging folder that WorkspaceService sweeps.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import BinaryIO, NamedTuple, Protocol, TypeVar, overload

from banger.workspace.errors import GitFailed

MOST = 16 << 20
"""Bytes of stdout that a git command may answer where the caller does not say."""
LISTING = 128 << 20
"""Of a command that lists files, refs or commits."""
STDERR_LENGTH = 8 << 10
COMMAND_TIMEOUT_S = 300.0
"""One git command. Whoever keeps has a deadline of their own for the whole."""

COMMON_ENV: Mapping[str, str] = {
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_GRAFT_FILE": "/dev/null",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_AUTHOR_NAME": "banger",
    "GIT_AUTHOR_EMAIL": "banger@localhost",
    "GIT_COMMITTER_NAME": "banger",
    "GIT_COMMITTER_EMAIL": "banger@localhost",
    "LC_ALL": "C",
    "TZ": "UTC",
}
COMMON_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.splitIndex=false",
    "core.untrackedCache=false",
    "core.sparseCheckout=false",
    "core.safecrlf=false",
    # graphs and indexes of packs are another's word for what the objects say
    "core.commitGraph=false",
    "core.multiPackIndex=false",
    # a guest may have little memory: large files are streamed, and not compared with others
    "core.bigFileThreshold=16m",
    "pack.windowMemory=32m",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.addEmbeddedRepo=false",
    "advice.graftFileDeprecated=false",
)

_A = TypeVar("_A")
_B = TypeVar("_B")
_C = TypeVar("_C")
_OBJECT_ID = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")


class GitResult(NamedTuple):
    """stderr: its last part, decoded somehow; it is a guest's text."""

    status: int
    stdout: bytes
    stderr: str


class Repository(Protocol):
    """git at one repository. Methods raise WorkNotKept, and in a guest what its agent's client raises."""

    how: str
    """Work.how: `guest-git`, `guest-files` or `disk`."""
    notes: tuple[str, ...]
    """What of the repository itself cannot be read, whole sentences."""
    linked: bool
    """A linked work tree inside has the refs of the repository that it is linked to."""

    async def prepare(self) -> None:
        """Find out what later commands need to know; beside other questions, so that none waits for it."""
        ...

    async def git(
        self,
        *argv: str,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        most: int = MOST,
    ) -> GitResult:
        """Run git to its end. GitFailed when it says more than `most` bytes; its status is the caller's."""
        ...

    async def git_to(self, sink: BinaryIO, *argv: str, stdin: bytes | None = None, most: int) -> GitResult:
        """As git, with stdout into an open file (stdout in the result is empty)."""
        ...

    async def look_up(self, names: Sequence[bytes]) -> list[bytes]:
        """For each name (an id or expression) `<id> <type>`, or something else where there is no such object.

        GitFailed when git says anything but a line for each.
        """
        ...

    async def scratch(self) -> str:
        """A temporary folder where git may have files of ours; the same one until aclose."""
        ...

    async def copy_index(self, target: str) -> bool:
        """A copy of the index, with its time (git's racy check needs it). False: there is none."""
        ...

    async def nested(self) -> tuple[bytes, ...]:
        """Repositories inside that git itself is not to see: a snapshot takes them as gitlinks."""
        ...

    async def sub(self, path: bytes) -> Repository | None:
        """The repository inside at `path` (relative to the work tree), None where there is none."""
        ...

    async def aclose(self) -> None:
        """Remove scratch. Idempotent; fails quietly, a guest may be gone."""
        ...


def object_id(text: bytes, of: str) -> str:
    """An object's id as git prints it. GitFailed for anything else; of: the command, for the message."""
    word = text.strip()
    if not _OBJECT_ID.match(word):
        raise GitFailed(of, "answered something that is no object's id")
    return word.decode()


def is_object_id(text: str) -> bool:
    return _OBJECT_ID.match(text.encode("utf-8", "replace")) is not None


def configured(config: tuple[str, ...]) -> list[str]:
    """`-c` for each setting."""
    return [word for setting in config for word in ("-c", setting)]


def command_words(argv: tuple[str, ...]) -> str:
    """A git command's name for messages."""
    return next((word for word in argv if word and word[0] not in "-/" and "=" not in word), "git")


def text_of(text: bytes) -> str:
    """Paths and names, whatever bytes they have."""
    return text.decode("utf-8", "surrogateescape")


class Git(Protocol):
    """What the questions below need of a repository."""

    async def git(self, *argv: str, stdin: bytes | None = None, most: int = MOST) -> GitResult: ...

    async def look_up(self, names: Sequence[bytes]) -> list[bytes]: ...


BATCH_CHECK = ("cat-file", "--batch-check=%(objectname) %(objecttype)")
"""What look_up asks."""


async def look_up_once(repository: Git, names: Sequence[bytes]) -> list[bytes]:
    """look_up by a git of its own for each question."""
    asked = b"".join(name + b"\n" for name in names)
    answered = await repository.git(*BATCH_CHECK, stdin=asked, most=LISTING)
    lines = answered.stdout.split(b"\n")[:-1]
    if len(lines) != len(names):
        raise GitFailed("cat-file", "answered nonsense", details=answered.stderr)
    return lines


async def existing(repository: Git, names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Those of `names` (ids or expressions without spaces) that are there: name -> (id, type)."""
    asked = list(dict.fromkeys(name for name in names if name))
    if not asked:
        return {}
    lines = await repository.look_up([name.encode("utf-8", "surrogateescape") for name in asked])
    found: dict[str, tuple[str, str]] = {}
    for name, line in zip(asked, lines, strict=True):
        identifier, _, kind = line.partition(b" ")
        if _OBJECT_ID.match(identifier) and kind in (b"commit", b"tree", b"blob", b"tag"):
            found[name] = (identifier.decode(), kind.decode())
    return found


async def unreached(
    repository: Git, wanted: Iterable[str], *, without: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """Commits that `wanted` reach and `without` do not, each with its parents. All ids must be there."""
    given = "".join(f"{commit}\n" for commit in wanted)
    if not given:
        return {}
    given += "".join(f"^{commit}\n" for commit in without)
    return await listed_commits(repository, given)


async def listed_commits(repository: Git, given: str, *words: str) -> dict[str, tuple[str, ...]]:
    """rev-list's commits, each with its parents. given: lines for its stdin; words: what else it is told."""
    listed = await repository.git(
        "rev-list", "--parents", *words, "--stdin", stdin=given.encode(), most=LISTING
    )
    if listed.status:
        raise GitFailed("rev-list", "failed: the history is damaged", details=listed.stderr)
    found: dict[str, tuple[str, ...]] = {}
    for line in listed.stdout.decode("ascii", "replace").splitlines():
        commit, *parents = line.split(" ")
        if not all(is_object_id(word) for word in (commit, *parents)):
            raise GitFailed("rev-list", "answered something that is no object's id")
        found[commit] = tuple(parents)
    return found


def outermost(candidates: Iterable[str], commits: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Those candidates among the commits (as unreached has them) that no other of them descends from."""
    inner = {parent for parents in commits.values() for parent in parents}
    return [commit for commit in dict.fromkeys(candidates) if commit in commits and commit not in inner]


@overload
async def together(one: Awaitable[_A], two: Awaitable[_B], /) -> tuple[_A, _B]: ...


@overload
async def together(one: Awaitable[_A], two: Awaitable[_B], three: Awaitable[_C], /) -> tuple[_A, _B, _C]: ...


async def together(*questions: Awaitable[object]) -> tuple[object, ...]:
    """The answers to questions that do not need each other; all have ended when the first failure is raised.

    A guest that is busy, as each is while it starts, has more of its time for two programs than for one.
    """
    answers = await asyncio.gather(*questions, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return tuple(answers)
