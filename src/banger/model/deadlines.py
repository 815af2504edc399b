"""How long the lifecycle waits for whom: guest, monitor, cleanup (SPEC §2).

One value, put together by daemon/compose.py and passed down, so that a test can shorten what it waits
for. All in seconds. Not a user's setting: what a guest may take follows its progress, not a number.
"""

from __future__ import annotations

import msgspec


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    agent_s: float = 30.0
    """The guest's agent calls, with KVM."""
    emulated_silence_s: float = 60.0
    """Under emulation: so long after the guest's last progress."""
    emulated_at_most_s: float = 600.0
    agent_answer_s: float = 2.0
    """The agent takes the request to shut down; then the key or button."""
    stop_silence_s: float = 10.0
    """A stop without progress; then a kill."""
    stop_at_most_s: float = 180.0
    kill_s: float = 30.0
    """The monitor ends after the user's signal."""
    killed_s: float = 20.0
    """… and after SIGKILL."""
    cleanup_s: float = 30.0
    keep_answer_s: float = 10.0
    """The agent answers at all, before a guest is asked for its work: one that hangs is not waited for."""
    keep_silence_s: float = 120.0
    """A guest's part in keeping its work: so long without its machine using CPU."""
    keep_at_most_s: float = 600.0
    """… and in all; also from the disk of a VM that does not run."""
    keep_look_s: float = 1.0
    """How often it is looked at."""
    monitor_up_s: float = 5.0
    """From the monitor's start to its answering API; normally 3 to 20 ms."""
    monitor_call_s: float = 5.0
    """One call. Upstream promises 700 ms; a busy host may be some times slower."""


USUAL = Deadlines()
