"""The rate of the processor's time stamp counter, which emulated guests cannot calibrate by themselves.

QEMU's emulator gives its guests the host's own counter (`rdtsc`), and its microvm has no timer to compare
that with, so the guest's kernel must be told the rate (`tsc_early_khz`). Measured once per process, in
about 40 ms. Used by vmm/qemu. Leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import platform
import time

_RDTSC = bytes.fromhex("0f3148c1e2204809d0c3")  # rdtsc; shl rdx,32; or rax,rdx; ret
_SAMPLES = 25
_BASELINE_S = 0.04


def measure_tsc_khz() -> int:
    """kHz, good to about ten parts in a million; 0 where the processor is no x86-64. Blocks 40 ms."""
    if platform.machine() != "x86_64":
        return 0
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(_RDTSC)
    anchor = ctypes.c_char.from_buffer(page)  # keeps the page alive, and goes with it
    rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))

    def sample() -> tuple[int, int]:
        """(ns, ticks) taken as close together as any of a few tries came."""
        best: tuple[int, int, int] | None = None
        for _ in range(_SAMPLES):
            before = time.monotonic_ns()
            ticks = int(rdtsc())
            after = time.monotonic_ns()
            if best is None or after - before < best[0]:
                best = (after - before, (before + after) // 2, ticks)
        assert best is not None
        return best[1], best[2]

    first_ns, first_ticks = sample()
    time.sleep(_BASELINE_S)
    last_ns, last_ticks = sample()
    return (last_ticks - first_ticks) * 1_000_000 // (last_ns - first_ns)


_known: int | None = None
_lock = asyncio.Lock()


async def tsc_khz() -> int:
    """The rate in kHz, measured on first use; 0 where there is none."""
    global _known
    async with _lock:
        if _known is None:
            _known = await asyncio.to_thread(measure_tsc_khz)
        return _known
