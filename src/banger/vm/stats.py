"""What a VM uses, from the host's side: its monitor's CPU and memory, its disks' allocated bytes.

Reads /proc, file blocks and the metrics file; asks no guest. A dead VM's disks still have a size,
its process figures are left out.
"""

from __future__ import annotations

import os
import time

import msgspec

from banger.model.records import VMHandles, VMRecord, VMStats, now
from banger.system.process import read_stat
from banger.vm.liveness import machine_alive
from banger.vm.progresswatch import TICKS_PER_S
from banger.vmm.protocol import MONITOR_ROLE

_METRICS_TAIL = 256 * 1024


class CpuSample(msgspec.Struct, frozen=True, kw_only=True):
    """CPU time of one process at one moment."""

    pid: int
    start_time: int
    at_s: float  # CLOCK_BOOTTIME, as start_time is
    cpu_s: float


def allocated_bytes(path: str) -> int | None:
    """Bytes the file really takes on the disk; None when there is no such file."""
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return None


def read_metrics(path: str) -> dict[str, object] | None:
    """The newest whole line of the monitor's metrics; a partial last line is passed over."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _METRICS_TAIL))
            data = file.read(_METRICS_TAIL)
    except OSError:
        return None
    for line in reversed(data.split(b"\n")[:-1]):
        line = line.lstrip(b"\0")  # the head of a long file was given back (system/logcap)
        if not line.endswith(b"}"):
            continue
        try:
            return msgspec.json.decode(line, type=dict[str, object])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
    return None


def collect(
    record: VMRecord, handles: VMHandles, *, boot_id: str, before: CpuSample | None
) -> tuple[VMStats, CpuSample | None]:
    """The stats now, and the sample that a later call's cpu_percent is measured against. Blocking.

    cpu_percent is of one CPU, since `before` where that is of the same process, else since its start.
    """
    runtime = record.runtime
    disks = VMStats(
        collected_at=now(),
        system_overlay_bytes=allocated_bytes(runtime.system_overlay_path),
        work_disk_bytes=allocated_bytes(runtime.work_disk_path),
    )
    monitor = handles.process(MONITOR_ROLE)
    if monitor is None or not machine_alive(handles, boot_id=boot_id):
        return disks, None
    stat = read_stat(monitor.pid)
    if stat is None or stat.start_time != monitor.start_time:
        return disks, None
    sample = CpuSample(
        pid=monitor.pid,
        start_time=monitor.start_time,
        at_s=time.clock_gettime(time.CLOCK_BOOTTIME),
        cpu_s=stat.cpu_ticks / TICKS_PER_S,
    )
    stats = msgspec.structs.replace(
        disks,
        cpu_percent=cpu_percent(before, sample),
        rss_bytes=stat.rss_bytes,
        vsz_bytes=stat.vsz_bytes,
        metrics_raw=read_metrics(runtime.metrics_path),
    )
    return stats, sample


def cpu_percent(before: CpuSample | None, sample: CpuSample) -> float | None:
    """None where no time has passed."""
    at_s, cpu_s = sample.start_time / TICKS_PER_S, 0.0
    if before is not None and (before.pid, before.start_time) == (sample.pid, sample.start_time):
        at_s, cpu_s = before.at_s, before.cpu_s
    passed = sample.at_s - at_s
    return round(100 * (sample.cpu_s - cpu_s) / passed, 1) if passed > 0 else None
