"""What of a VM's record must survive a power cut, and what a power cut makes untrue anyway."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from banger.model.records import VMRecord
from banger.model.states import VMState
from banger.store.vms import VMTable
from banger.vm.handles import HandleCache
from banger.vm.subject import Subject
from tests.unit.vm.test_planner import record_of


class RememberingTable:
    def __init__(self) -> None:
        self.saved: list[tuple[VMState, str, bool]] = []

    async def update(self, record: VMRecord, *, durable: bool = True) -> None:
        self.saved.append((record.state, record.runtime.tap_device, durable))


def subject_in(folder: Path, table: RememberingTable) -> Subject:
    made = record_of(1, VMState.STOPPED)
    return Subject(made, table=cast(VMTable, table), cache=HandleCache("boot"))


@pytest.mark.anyio
async def test_claims_of_life_cost_no_fsync_and_their_end_does(tmp_path: Path) -> None:
    table = RememberingTable()
    subject = subject_in(tmp_path, table)
    for state in (VMState.STARTING, VMState.RUNNING, VMState.STOPPING, VMState.STOPPED):
        await subject.set_state(state)
    assert [(state, durable) for state, _, durable in table.saved] == [
        (VMState.STARTING, False),
        (VMState.RUNNING, False),
        (VMState.STOPPING, False),
        (VMState.STOPPED, True),
    ]
    await subject.set_state(VMState.ERROR, last_error="why")
    assert table.saved[-1] == (VMState.ERROR, "", True)
