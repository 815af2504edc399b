"""What can go wrong between banger and the kernel or a host program."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from banger.errors import BangerError, ErrorCode

STDERR_TAIL = 2000
"""Bytes of a failed program's stderr that an error carries."""


class KernelError(BangerError):
    """A kernel interface refused; the brief says which, the hint what to do about it."""


class CommandError(BangerError):
    """A host program failed. argv: as run; status: exit status, negative for a signal; stderr: its tail."""

    def __init__(
        self,
        argv: Sequence[str],
        status: int,
        *,
        stderr: bytes = b"",
        code: ErrorCode = ErrorCode.COMMAND_FAILED,
        what: str = "",
        hint: str | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr[-STDERR_TAIL:].decode("utf-8", "replace").strip()
        how = what or (f"died of signal {-status}" if status < 0 else f"exited with {status}")
        last = _telling_line(self.stderr.splitlines())
        program = argv[0].rpartition("/")[2]
        super().__init__(
            code,
            f"{program} {how}" + (f": {last[:300]}" if last else ""),
            details=f"{shlex.join(argv)}\n{self.stderr}",
            hint=hint,
        )


def _telling_line(lines: Sequence[str]) -> str:
    """The first line that says `error`, else the last one with words (nft draws carets below its errors)."""
    worded = [line.strip() for line in lines if any(letter.isalnum() for letter in line)]
    said = next((line for line in worded if "error:" in line.lower()), None)
    return said or (worded[-1] if worded else "")


class CommandTimeout(CommandError):
    """A host program ran past its deadline and was killed with its whole group."""

    def __init__(self, argv: Sequence[str], timeout_s: float, *, stderr: bytes = b"") -> None:
        super().__init__(
            argv, -9, stderr=stderr, code=ErrorCode.TIMEOUT, what=f"did not end within {timeout_s:g} s"
        )


class MissingProgram(BangerError):
    """A host program is not installed."""

    def __init__(self, program: str, package: str | None) -> None:
        super().__init__(
            ErrorCode.HOST_UNSUITABLE,
            f"the program {program} is not installed on this host",
            hint=f"on Debian or Ubuntu: sudo apt install {package}" if package else f"install {program}",
            data={"program": program},
        )
