"""Whether a VM is alive: one function (SPEC §2)."""

from __future__ import annotations

from banger.model.records import VMHandles, VMRecord
from banger.model.states import VMState
from banger.system.process import is_same
from banger.vmm.protocol import MONITOR_ROLE


def machine_alive(handles: VMHandles, *, boot_id: str) -> bool:
    """The recorded monitor process is that machine: same pid, same start time, same boot, not a zombie."""
    monitor = handles.process(MONITOR_ROLE)
    return monitor is not None and handles.boot_id == boot_id and is_same(monitor)


def vm_alive(record: VMRecord, handles: VMHandles, *, boot_id: str) -> bool:
    """State is running and the machine lives."""
    return record.state is VMState.RUNNING and machine_alive(handles, boot_id=boot_id)
