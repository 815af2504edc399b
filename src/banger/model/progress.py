"""Progress of a long operation: what a service says while it works, and who listens."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class ProgressEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """step: a stable id ("root_disk"); message: one line for a person; current/total: bytes or counts.

    warning: something the user should read, though the work goes on. vm_id: the VM the work is on; create()
    says it once, as soon as the VM has an id, so that a client that gives up can name what to delete.
    """

    step: str
    message: str
    current: int | None = None
    total: int | None = None
    warning: bool = False
    vm_id: str = ""


Progress = Callable[[ProgressEvent], None]
"""Called from the event loop's thread; must not block. Services take one and report into it."""


def no_progress(_event: ProgressEvent) -> None:
    """For callers that do not want to hear."""
