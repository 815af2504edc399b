"""What the options before a command said, for the code that prints: set once by main.py."""

from __future__ import annotations

debug = False
quiet = False
failure_status = 1
"""What banger's own failure exits with: 125 where the exit status is the guest command's (SPEC §3)."""
GUEST_COMMAND_FAILURE = 125


def own_failures_are_125() -> None:
    """From here on the exit status belongs to the guest's command."""
    global failure_status
    failure_status = GUEST_COMMAND_FAILURE
