"""VM states and the one table of allowed transitions. The property tests use the same table."""

from __future__ import annotations

from enum import StrEnum


class VMState(StrEnum):
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"


TRANSITIONS: dict[VMState, frozenset[VMState]] = {
    # a start that fails in its first steps puts the state back, hence starting → created/stopped/error
    VMState.CREATED: frozenset({VMState.STARTING, VMState.STOPPED, VMState.ERROR}),
    VMState.STARTING: frozenset({VMState.RUNNING, VMState.CREATED, VMState.STOPPED, VMState.ERROR}),
    VMState.RUNNING: frozenset({VMState.STOPPING, VMState.STOPPED, VMState.ERROR}),
    VMState.STOPPING: frozenset({VMState.STOPPED, VMState.ERROR, VMState.RUNNING}),
    VMState.STOPPED: frozenset({VMState.STARTING, VMState.STOPPED, VMState.ERROR}),
    VMState.ERROR: frozenset({VMState.STARTING, VMState.STOPPED, VMState.ERROR}),
}

CLAIMS_LIFE: frozenset[VMState] = frozenset({VMState.STARTING, VMState.RUNNING, VMState.STOPPING})
"""States in which the store says there may be a process."""


def may_become(state: VMState, target: VMState) -> bool:
    return target in TRANSITIONS[state]
