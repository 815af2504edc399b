"""The end of a process that has been identified, heard through a pidfd: no polling, no reused pid.

Used by vmm for the monitors' processes. The descriptor closes with the watch; nothing is left behind.
"""

from __future__ import annotations

import asyncio
import os
import signal

from banger.model.records import ProcessIdentity
from banger.system.process import read_stat


class ExitWatch:
    """Opened at once, so that the process watched is the one identified, whatever happens later."""

    def __init__(self, identity: ProcessIdentity) -> None:
        self._fd = -1
        try:
            self._fd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return
        stat = read_stat(identity.pid)  # a zombie is fine: its end is what is asked for
        if stat is None or stat.start_time != identity.start_time:
            self.close()

    async def wait(self) -> int | None:
        """Until it has ended. Its exit status, negative for a signal; None where it was not our child
        or somebody else has reaped it. Several may wait."""
        if self._fd < 0:
            return None
        # a descriptor of its own: the loop keeps one reader per descriptor
        fd = os.dup(self._fd)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def notice() -> None:
            if not ended.done():
                ended.set_result(None)

        loop.add_reader(fd, notice)
        try:
            await ended
            return _status(fd)
        finally:
            loop.remove_reader(fd)
            os.close(fd)

    def kill(self, signum: int) -> bool:
        """Send a signal; False when the process has gone."""
        if self._fd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._fd, signum)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _status(pidfd: int) -> int | None:
    """Seen without reaping: that is for whoever started the process."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
