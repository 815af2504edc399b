"""What can go wrong between banger and a guest's agent."""

from __future__ import annotations

from banger.errors import BangerError, ErrorCode


class GuestUnreachable(BangerError):
    """The agent does not answer, went silent, or speaks nonsense (the guest is not trusted to be sane)."""

    def __init__(self, brief: str, *, details: str | None = None) -> None:
        super().__init__(ErrorCode.GUEST_UNREACHABLE, brief, details=details)


class AgentRefused(BangerError):
    """The agent answered with ERROR. agent_code: the wire's code; errno: the guest's, 0 where there is none.

    exit_status: what a shell would exit with: 127 not found, 126 not executable, else 125.
    """

    def __init__(self, agent_code: str, message: str, *, errno: int = 0) -> None:
        self.agent_code = agent_code
        self.errno = errno
        self.exit_status = {"not_found": 127, "not_executable": 126}.get(agent_code, 125)
        super().__init__(
            ErrorCode.GUEST_ERROR,
            f"the guest's agent: {message}",
            data={"agent_code": agent_code, "exit_status": self.exit_status},
        )


class GuestTimeout(BangerError):
    """The agent did not answer in time."""

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(ErrorCode.TIMEOUT, f"the guest's agent did not {what} within {timeout_s:g} s")
