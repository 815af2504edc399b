"""Kernel settings under /proc/sys, of the network namespace that the caller is in. Called by helper/ only.

What was changed stays after a crash: who changes one writes down before what it was.
"""

from __future__ import annotations

from banger.errors import ErrorCode
from banger.system.errors import KernelError

IP_FORWARD = "net/ipv4/ip_forward"


def read(name: str) -> str:
    """The value, stripped. KernelError when the kernel has no such setting."""
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError as error:
        raise _explained("read", name, error) from error


def write(name: str, value: str) -> None:
    """KernelError when the kernel refuses, as in a container with a read-only /proc."""
    try:
        with open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
            file.write(f"{value}\n")
    except OSError as error:
        raise _explained(f"set to {value}", name, error) from error


def _explained(what: str, name: str, error: OSError) -> KernelError:
    dotted = name.replace("/", ".")
    code = ErrorCode.PERMISSION_DENIED if isinstance(error, PermissionError) else ErrorCode.HOST_UNSUITABLE
    return KernelError(code, f"cannot {what} {dotted}: {error.strerror}", hint=f"try: sysctl {dotted}")
