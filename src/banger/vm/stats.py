"""What a VM uses, from the host's side: its monitor's CPU and memory, its disks' allocated bytes.

Reads /proc, file blocks and the metrics file; asks no guest. A dead VM's disks still have a size,
its process figures are left out.
"""

from __future__ import annotations

import os

import msgspec

from banger.model.records import VMHandles, VMRecord, VMStats, now
from banger.system.process import read_stat
from banger.vm.liveness import MONITOR_ROLE, machine_alive
from banger.vm.progresswatch import TICKS_PER_S

_METRICS_TAIL = 256 * 1024


class CpuSample(msgspec.Struct, frozen=True, kw_only=True):
    at_s: float  # time.monotonic()
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
        if not line.endswith(b"}"):
            continue
        try:
            return msgspec.json.decode(line, type=dict[str, object])
        except msgspec.MsgspecError:
            continue
    return None


def collect(
    record: VMRecord, handles: VMHandles, *, boot_id: str, before: CpuSample | None, at_s: float
) -> tuple[VMStats, CpuSample | None]:
    """The stats now, and the sample that the next call's cpu_percent is measured against."""
    runtime = record.runtime
    overlay = allocated_bytes(runtime.system_overlay_path)
    work = allocated_bytes(runtime.work_disk_path)
    monitor = handles.process(MONITOR_ROLE)
    if monitor is None or not machine_alive(handles, boot_id=boot_id):
        return VMStats(collected_at=now(), system_overlay_bytes=overlay, work_disk_bytes=work), None
    stat = read_stat(monitor.pid)
    if stat is None:
        return VMStats(collected_at=now(), system_overlay_bytes=overlay, work_disk_bytes=work), None
    sample = CpuSample(at_s=at_s, cpu_s=stat.cpu_ticks / TICKS_PER_S)
    percent: float | None = None
    if before is not None and at_s > before.at_s:
        percent = round(100 * (sample.cpu_s - before.cpu_s) / (at_s - before.at_s), 1)
    stats = VMStats(
        collected_at=now(),
        cpu_percent=percent,
        rss_bytes=stat.rss_bytes,
        vsz_bytes=stat.vsz_bytes,
        system_overlay_bytes=overlay,
        work_disk_bytes=work,
        metrics_raw=read_metrics(runtime.metrics_path),
    )
    return stats, sample
