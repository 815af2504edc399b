"""What the SDK hands out and raises besides VMs: results of commands, pieces of output, progress, failures.

Plain values, made by client/process.py and its neighbours and by their asynchronous twins. Standard library
only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, AnyStr, Generic, Literal, NamedTuple

from banger.errors import BangerError, ErrorCode

if TYPE_CHECKING:
    from banger.client import shapes

StreamName = Literal["stdout", "stderr"]
Replay = Literal["unseen", "all", "none"]

MAX_OUTPUT_BYTES = 64 << 20
"""What one `exec` may hold in memory unless it is told otherwise."""


class Output(NamedTuple):
    """A piece of what a command wrote, as it came: pieces end anywhere, also inside a character."""

    stream: StreamName
    data: bytes


class Result(NamedTuple, Generic[AnyStr]):
    """How a command ended. returncode: its exit code, or -N when signal N ended it, as in subprocess."""

    args: tuple[str, ...]
    returncode: int
    stdout: AnyStr
    stderr: AnyStr


class Progress(NamedTuple):
    """What the daemon says of a long piece of work.

    kind: `step` (the next part has begun), `progress` (how far it is) or `warning` (to be read, though the
    work goes on). step: a stable name. current and total: bytes or counts, None where nobody knows.
    """

    kind: str
    step: str
    message: str
    current: int | None
    total: int | None
    vm_id: str


OnProgress = Callable[[Progress], None]
"""Called in the thread that waits (asynchronously: in the event loop's); what it raises ends the wait."""

Login = Mapping[str, str]
"""username and password, or identity_token, or registry_token: fields of RegistryCredential (docs/api.md)."""
Credentials = Callable[[str], Mapping[str, Login]]
"""An image's reference → logins by registry (`host[:port]`), asked before each pull, in a thread."""


class CommandFailed(BangerError):
    """The command ran, and ended with another status than 0: `exec` with check=True."""

    def __init__(
        self, args: Sequence[str], returncode: int, *, stdout: bytes | str = b"", stderr: bytes | str = b""
    ) -> None:
        how = f"ended by signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
        super().__init__(
            ErrorCode.GUEST_ERROR,
            f"the command failed in the guest: {_shown(args)}: {how}",
            details=_tail(stderr) or None,
            data={"returncode": returncode},
        )
        self.command: tuple[str, ...] = tuple(args)
        self.returncode: int = returncode
        self.stdout: bytes | str = stdout
        self.stderr: bytes | str = stderr


class CommandTimeout(BangerError):
    """The command ran longer than its timeout and was killed in the guest. What it had written is here."""

    def __init__(
        self, args: Sequence[str], timeout_s: float, *, stdout: bytes | str = b"", stderr: bytes | str = b""
    ) -> None:
        super().__init__(
            ErrorCode.TIMEOUT,
            f"the command ran longer than {timeout_s:g} s in the guest and was killed: {_shown(args)}",
            details=_tail(stderr) or None,
        )
        self.command: tuple[str, ...] = tuple(args)
        self.timeout: float = timeout_s
        self.stdout: bytes | str = stdout
        self.stderr: bytes | str = stderr

    def as_text(self) -> CommandTimeout:
        """The same, with str."""
        return CommandTimeout(
            self.command, self.timeout, stdout=_text(self.stdout), stderr=_text(self.stderr)
        )


class OutputTooLong(BangerError):
    """The command wrote more than `exec` may hold, or more than nobody reads, and was killed."""

    def __init__(self, args: Sequence[str], most: int) -> None:
        super().__init__(
            ErrorCode.GUEST_ERROR,
            f"the command wrote more than {most} bytes that nobody took, and was killed: {_shown(args)}",
            hint="exec(…, max_output_bytes=…) takes more; popen(…) reads as it comes",
            data={"max_output_bytes": most},
        )


def progress_of(event: shapes.Event) -> Progress | None:
    """None for what is no progress: the result, the error."""
    if event["kind"] in ("result", "error", "heartbeat"):
        return None
    return Progress(
        event["kind"],
        event.get("step", ""),
        event.get("message", ""),
        event.get("current"),
        event.get("total"),
        event.get("vm_id", ""),
    )


def _shown(args: Sequence[str]) -> str:
    words = " ".join(args)
    words = words if len(words) <= 80 else f"{words[:79]}…"
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)


def _text(data: bytes | str) -> str:
    return data if isinstance(data, str) else data.decode("utf-8", "replace")


def _tail(stderr: bytes | str) -> str:
    text = stderr if isinstance(stderr, str) else stderr[-2000:].decode("utf-8", "replace")
    return text[-2000:].strip()
