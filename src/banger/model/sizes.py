"""Sizes of memory and disks, and counts of vCPUs: read, checked and printed in one way (SPEC §1).

Sizes are bytes (int) everywhere but in the fields called `_mib`. Used by the CLI and the daemon,
so it imports nothing but errors.py. Every fault has its own message. Pure.
"""

from __future__ import annotations

from banger.errors import BangerError, ErrorCode

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

MAX_SIZE = 128 * GIB
MIN_MEMORY = 128 * MIB
MIN_DISK = 64 * MIB
MAX_VCPU = 32
"""What Firecracker allows (its API's MachineConfiguration.vcpu_count)."""

_UNITS = {
    "": MIB,
    "k": KIB,
    "kib": KIB,
    "m": MIB,
    "mib": MIB,
    "g": GIB,
    "gib": GIB,
}
_MAX_DIGITS = 20  # more cannot be in range; int() of very long text is slow, and fails past 4300 digits
_HINT = "a size is a whole number and K, M or G, for example 512M or 8G; without a letter it is MiB"


def parse_size(text: str, *, what: str, minimum: int = 1, maximum: int = MAX_SIZE) -> int:
    """Bytes of `512M`, `8GiB`, `2048` (MiB). `what` names the thing in messages ("memory").

    BangerError INVALID_ARGUMENT, with its own message for each fault: missing, no number,
    no whole number, bad suffix, not positive, too big, too small.
    """
    trimmed = text.strip()
    if not trimmed:
        raise _fault(f"{what}: the size is missing", _HINT)
    shown = ascii(trimmed if len(trimmed) <= 40 else trimmed[:37] + "...")
    negative = trimmed[0] == "-"
    unsigned = trimmed[1:] if negative else trimmed
    length = 0
    while length < len(unsigned) and unsigned[length] in "0123456789":
        length += 1
    digits, suffix = unsigned[:length].lstrip("0"), unsigned[length:]
    if not length:
        raise _fault(f"{what}: {shown} is not a size", _HINT)
    if suffix[:1] in (".", ",") and suffix:
        raise _fault(f"{what}: {shown} is not a whole number", _HINT)
    unit = _UNITS.get(suffix.lower()) if suffix.isascii() else None
    if unit is None:
        raise _fault(f"{what}: {shown} has a bad suffix {suffix[:20]!a}", _HINT)
    if negative or not digits:
        raise _fault(f"{what}: {shown} is not positive", _HINT)
    if len(digits) > _MAX_DIGITS:
        raise _too_big(what, shown, maximum)
    return check_size(int(digits) * unit, what=what, minimum=minimum, maximum=maximum, shown=shown)


def check_size(size: int, *, what: str, minimum: int = 1, maximum: int = MAX_SIZE, shown: str = "") -> int:
    """The size in bytes, unchanged, when it is in range; INVALID_ARGUMENT otherwise."""
    shown = shown or format_size(size)
    if size <= 0:
        raise _fault(f"{what}: {shown} is not positive", _HINT)
    if size > maximum:
        raise _too_big(what, shown, maximum)
    if size < minimum:
        raise _fault(f"{what}: {shown} is too small", f"{what} must be at least {format_size(minimum)}")
    return size


def parse_memory_mib(text: str, *, what: str = "memory") -> int:
    """MiB of a memory size, at least 128 MiB, a whole number of MiB."""
    size = parse_size(text, what=what, minimum=MIN_MEMORY)
    if size % MIB:
        raise _fault(
            f"{what}: {text.strip()!a} is not a whole number of MiB", "memory is given to a VM in MiB"
        )
    return size // MIB


def parse_disk_size(text: str, *, what: str = "disk size") -> int:
    """Bytes of a disk size, at least 64 MiB."""
    return parse_size(text, what=what, minimum=MIN_DISK)


def check_memory_mib(memory_mib: int, *, what: str = "memory") -> int:
    check_size(memory_mib * MIB, what=what, minimum=MIN_MEMORY)
    return memory_mib


def check_disk_size(size: int, *, what: str = "disk size") -> int:
    return check_size(size, what=what, minimum=MIN_DISK)


def check_vcpu_count(count: int, *, what: str = "vcpu") -> int:
    """The count, unchanged, when a VM may have so many."""
    if count <= 0:
        raise _fault(f"{what}: {count} is not positive", f"a VM has 1 to {MAX_VCPU} vCPUs")
    if count > MAX_VCPU:
        raise _fault(f"{what}: {count} is too many", f"a VM has 1 to {MAX_VCPU} vCPUs")
    return count


def format_size(size: int) -> str:
    """The largest exact G, M or K, else bytes without a suffix: 8G, 1536M, 4K, 1000."""
    if size:
        for unit, letter in ((GIB, "G"), (MIB, "M"), (KIB, "K")):
            if size % unit == 0:
                return f"{size // unit}{letter}"
    return str(size)


def _fault(brief: str, hint: str) -> BangerError:
    return BangerError(ErrorCode.INVALID_ARGUMENT, brief, hint=hint)


def _too_big(what: str, shown: str, maximum: int) -> BangerError:
    return _fault(f"{what}: {shown} is too big", f"{what} may be at most {format_size(maximum)}")
