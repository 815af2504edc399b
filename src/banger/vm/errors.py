"""Errors of the lifecycle: which step failed, why, and what cleaning up left behind."""

from __future__ import annotations

from collections.abc import Sequence

from banger.errors import BangerError, ErrorCode
from banger.workspace.errors import WorkNotKept


def describe_cause(cause: BaseException) -> str:
    """One line for any exception; a bare TimeoutError says so, an unknown one names its type."""
    if isinstance(cause, BangerError):
        return cause.brief
    if isinstance(cause, TimeoutError):
        return str(cause) or "timed out"
    if isinstance(cause, OSError):
        return f"{cause.strerror or cause}" + (f": {cause.filename}" if cause.filename else "")
    return f"{type(cause).__name__}: {cause}"


class StepFailed(BangerError):
    """A lifecycle step failed. Carries the cause's code and hint, the step's id, and cleanup errors."""

    def __init__(
        self,
        operation: str,
        step: str,
        *,
        cause: BaseException,
        cleanup: Sequence[BaseException] = (),
        log_path: str = "",
    ) -> None:
        brief = f"{operation}: {step.replace('_', ' ')}: {describe_cause(cause)}"
        notes = [f"cleanup: {describe_cause(error)}" for error in cleanup]
        if notes:
            brief = "; ".join([brief, *notes])
        if log_path:
            brief = f"{brief} (log: {log_path})"
        known = cause if isinstance(cause, BangerError) else None
        code = (
            known.code
            if known
            else (ErrorCode.TIMEOUT if isinstance(cause, TimeoutError) else ErrorCode.INTERNAL)
        )
        if isinstance(cause, OSError) and not known:
            code = ErrorCode.NO_SPACE if cause.errno == 28 else ErrorCode.HOST_UNSUITABLE
        super().__init__(
            code,
            brief,
            details=known.details if known else None,
            hint=known.hint if known else None,
            data={"step": step, **(known.data if known else {})},
        )
        self.step = step


class CleanupFailed(BangerError):
    """Something of a VM's could not be removed. What is left stays recorded; a repeat finishes it."""

    def __init__(
        self, name: str, failures: Sequence[tuple[str, BaseException]], *, log_path: str = ""
    ) -> None:
        what = "; ".join(f"{step.replace('_', ' ')}: {describe_cause(error)}" for step, error in failures)
        where = f" (log: {log_path})" if log_path else ""
        super().__init__(
            ErrorCode.CLEANUP_FAILED,
            f"could not clean up {name}: {what}{where}",
            hint="the VM and what is left of it stay recorded; the same command again finishes it",
            data={"steps": [step for step, _ in failures]},
        )
        self.failures = tuple(failures)


class Aborted(BangerError):
    """Kill, delete or cancel ended a start or stop that was under way."""

    def __init__(self, name: str, by: str) -> None:
        super().__init__(ErrorCode.ABORTED, f"{name}: aborted by {by}")


class NoWorkspace(BangerError):
    """Nothing was brought into the VM, so there is nothing to keep of it."""

    def __init__(self, name: str) -> None:
        super().__init__(
            ErrorCode.WRONG_STATE,
            f"VM {name} has no workspace",
            hint=f"put a repository into it: banger vm workspace prepare {name} PATH",
        )


class KeepFailed(BangerError):
    """The work in a VM's workspace could not be kept, and why, by each way that was tried."""

    def __init__(self, name: str, *, causes: Sequence[BaseException], hint: str | None = None) -> None:
        tried: list[BaseException] = []
        for cause in causes:
            tried += cause.causes if isinstance(cause, KeepFailed) else [cause]
        details = [_why_not_kept(cause) for cause in tried]
        details += [cause.details for cause in tried if isinstance(cause, BangerError) and cause.details]
        super().__init__(
            ErrorCode.WORK_NOT_KEPT,
            f"the work in {name} could not be kept: {_why_not_kept(tried[-1])}",
            hint=hint,
            details="\n".join(details),
        )
        self.causes: tuple[BaseException, ...] = tuple(tried)


def _why_not_kept(cause: BaseException) -> str:
    return cause.reason if isinstance(cause, WorkNotKept) else describe_cause(cause)
