"""What goes wrong between banger and a machine monitor."""

from __future__ import annotations

from banger.errors import BangerError, ErrorCode

_HINTS = (
    ("Resource busy", "another process holds the tap device; `banger host audit` shows what is left over"),
    ("Device or resource busy", "another process holds the tap device; `banger host audit` shows it"),
    ("Address already in use", "a socket of an earlier run is in the VM's folder; `banger host audit --fix`"),
    ("Permission denied", "the user that runs banger needs access to /dev/kvm, /dev/net/tun and the disks"),
    ("Cannot allocate memory", "the host has too little free memory for this VM; give it less with --memory"),
    ("No space left", "the disk that holds the VM's folder is full"),
)


class MonitorError(BangerError):
    """A monitor refused a call, died or hung.

    call: what was asked of it ("PUT /drives/root"). fault: its own words, "" when it said none.
    """

    def __init__(
        self,
        brief: str,
        *,
        call: str = "",
        fault: str = "",
        details: str | None = None,
        hint: str | None = None,
        code: ErrorCode = ErrorCode.MONITOR_FAILED,
    ) -> None:
        self.call = call
        self.fault = fault
        if hint is None:
            hint = next((text for pattern, text in _HINTS if pattern in fault), None)
        super().__init__(code, brief, details=details, hint=hint)


class MonitorUnsupported(MonitorError):
    """This version of the monitor cannot do that, or must not be asked to."""

    def __init__(self, brief: str, *, hint: str | None = None) -> None:
        super().__init__(brief, hint=hint, code=ErrorCode.HOST_UNSUITABLE)
