"""Deadlines that follow a guest's progress, for hosts where emulation makes any boot five times slower.

A guest makes progress while its console grows or its monitor uses CPU. What counts against the
deadline is silence: wall time in which neither happened, or CPU time burnt without a word on the console.
"""

from __future__ import annotations

import os
import time

from banger.model.records import ProcessIdentity
from banger.system.process import is_same, read_stat

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
BUSY_SHARE = 0.05  # of a core: below that the monitor idles


class ProgressWatch:
    """Ask `overdue()` now and then. Host facts only: no guest can stretch it for ever."""

    def __init__(
        self,
        monitor: ProcessIdentity | None,
        console_path: str,
        *,
        silence_s: float,
        cpu_s: float,
        at_most_s: float,
    ) -> None:
        """monitor: None where no machine is watched; silence_s: wall seconds without output and CPU use;
        cpu_s: CPU seconds since the last output; at_most_s: wall seconds in all."""
        self._monitor = monitor
        self._console_path = console_path
        self._silence_s = silence_s
        self._cpu_s = cpu_s
        self._at_most_s = at_most_s
        self._began = self._last_progress = self._last_asked = time.monotonic()
        self._cpu = self._cpu_at_output = self._read_cpu()
        self._output = self._read_output()

    def overdue(self) -> str:
        """ "" while there is hope, else why there is none."""
        now = time.monotonic()
        cpu, output = self._read_cpu(), self._read_output()
        if output != self._output:
            self._output, self._cpu_at_output, self._last_progress = output, cpu, now
        elif cpu - self._cpu > BUSY_SHARE * (now - self._last_asked):
            self._last_progress = now
        self._cpu, self._last_asked = cpu, now
        if now - self._last_progress > self._silence_s:
            return f"no sign of life for {self._silence_s:g} s"
        if cpu - self._cpu_at_output > self._cpu_s:
            return f"{self._cpu_s:g} s of CPU time without a word on the console"
        if now - self._began > self._at_most_s:
            return f"not done after {self._at_most_s:g} s"
        return ""

    def _read_cpu(self) -> float:
        if self._monitor is None or not is_same(self._monitor):
            return 0.0
        stat = read_stat(self._monitor.pid)
        return stat.cpu_ticks / TICKS_PER_S if stat else 0.0

    def _read_output(self) -> int:
        try:
            return os.path.getsize(self._console_path)
        except OSError:
            return 0
