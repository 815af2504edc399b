"""What can go wrong when the work of a VM is kept."""

from __future__ import annotations

from banger.errors import BangerError, ErrorCode


class WorkNotKept(BangerError):
    """The work could not be brought into the store, which is as it was before. reason: one line, why.

    vm_name: whose; "" where only the repository is known.
    """

    def __init__(self, reason: str, *, vm_name: str = "", details: str | None = None) -> None:
        self.reason = reason
        whose = f"the work of {vm_name}" if vm_name else "the work"
        super().__init__(
            ErrorCode.WORK_NOT_KEPT,
            f"{whose} could not be kept: {reason}",
            details=details,
            hint=f"`banger vm delete --discard-work {vm_name}` deletes it with the VM" if vm_name else None,
        )


class GitMissing(WorkNotKept):
    """There is no git where the repository is (a guest needs none: its files are kept another way)."""

    def __init__(self) -> None:
        super().__init__("there is no git in the guest")


class GitFailed(WorkNotKept):
    """A git command failed, said too much or answered nonsense. command: its words, without the paths."""

    def __init__(self, command: str, why: str, *, details: str | None = None) -> None:
        self.command = command
        super().__init__(f"git {command} {why}", details=details)


class NoRepository(WorkNotKept):
    """Where the repository was brought there is none any more."""

    def __init__(self, why: str = "its .git is gone or damaged") -> None:
        super().__init__(why)
