"""What the client raises besides what the daemon answers."""

from __future__ import annotations

from banger.errors import BangerError, ErrorCode


class DaemonUnreachable(BangerError):
    """The daemon is not there, does not start, or went away in the middle."""

    def __init__(self, brief: str, *, details: str | None = None, hint: str | None = None) -> None:
        super().__init__(ErrorCode.DAEMON_UNREACHABLE, brief, details=details, hint=hint)


class GuestUnreachable(BangerError):
    """The guest's agent does not answer, or the connection to it broke."""

    def __init__(self, brief: str, *, details: str | None = None, hint: str | None = None) -> None:
        super().__init__(ErrorCode.GUEST_UNREACHABLE, brief, details=details, hint=hint)


def error_from_body(body: dict[str, object], *, fallback: str) -> BangerError:
    """The daemon's error as an exception. A code that this client is too old to know becomes internal."""
    try:
        code = ErrorCode(str(body.get("code", "")))
    except ValueError:
        code = ErrorCode.INTERNAL
    data = body.get("data")
    facts: dict[str, object] = dict(data) if isinstance(data, dict) else {}
    if op_id := body.get("op_id"):
        facts["op_id"] = op_id
    return BangerError(
        code,
        str(body.get("brief") or fallback),
        details=str(body["details"]) if body.get("details") else None,
        hint=str(body["hint"]) if body.get("hint") else None,
        data=facts,
    )
