"""Whether this host's KVM is there, may be opened, and runs stock kernels.

Owns the one probe of /dev/kvm and its result, which holds until the next boot and is asked for once
per process. Used by vmm to choose a monitor and by doctor to explain. Leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys

import msgspec

from banger.system import kvm_probe
from banger.system.errors import CommandError
from banger.system.run import run

DEVICE = "/dev/kvm"
SLOWEST_NS_PER_INSTRUCTION = 100.0
"""Hardware needs well under 1 ns, KVM inside an emulated machine some 10, an interpreting KVM 500."""
PROBE_TIMEOUT_S = 10.0


class KvmStatus(msgspec.Struct, frozen=True, kw_only=True):
    """reason: why it is not usable, one line without a full stop; "" when it is."""

    present: bool
    openable: bool
    usable: bool
    reason: str = ""


class _Probed(msgspec.Struct):
    ok: bool
    reason: str = ""
    ns_per_instruction: float = 0.0


async def probe_kvm(device: str = DEVICE) -> KvmStatus:
    """Look afresh: some ten milliseconds, up to a tenth of a second where the answer is no."""
    if not os.path.exists(device):
        return KvmStatus(present=False, openable=False, usable=False, reason=f"there is no {device}")
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        reason = f"{device} cannot be opened: {error.strerror}"
        return KvmStatus(present=True, openable=False, usable=False, reason=reason)
    if platform.machine() != "x86_64":
        return KvmStatus(present=True, openable=True, usable=True)
    unusable = KvmStatus(present=True, openable=True, usable=False)
    # A process of its own: a KVM that hangs or crashes its user must not take the daemon along.
    argv = [sys.executable, "-I", "-S", kvm_probe.__file__, device]
    try:
        completed = await run(argv, timeout_s=PROBE_TIMEOUT_S)
        result = msgspec.json.decode(completed.stdout, type=_Probed)
    except (CommandError, msgspec.DecodeError) as error:
        return msgspec.structs.replace(unusable, reason=f"the probe guest failed: {error}")
    if not result.ok:
        return msgspec.structs.replace(unusable, reason=result.reason)
    if result.ns_per_instruction > SLOWEST_NS_PER_INSTRUCTION:
        reason = (
            f"{device} runs a guest's kernel code at {result.ns_per_instruction:.0f} ns an instruction:"
            " it interprets it, and a stock kernel gets nowhere"
        )
        return msgspec.structs.replace(unusable, reason=reason)
    return KvmStatus(present=True, openable=True, usable=True)


_known: KvmStatus | None = None
_lock = asyncio.Lock()


async def kvm_status() -> KvmStatus:
    """The host's status, probed on first use and kept for this process's life."""
    global _known
    async with _lock:
        if _known is None:
            _known = await probe_kvm()
        return _known
