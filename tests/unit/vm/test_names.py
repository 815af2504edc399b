"""The capability: a name is there while its VM runs, and follows what is changed of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from banger.config.settings import Settings
from banger.model.records import VMRecord, VMRuntime, VMSpec, now
from banger.model.states import VMState
from banger.network.dnszone import NamedGuest
from banger.network.names import Names
from banger.vm.names import GuestNames
from banger.vm.subject import Subject
from tests.unit.network.test_resolver import FakeResolved

pytestmark = pytest.mark.anyio

SPEC = VMSpec(
    vcpu_count=1,
    memory_mib=256,
    system_overlay_size_bytes=1 << 30,
    work_disk_size_bytes=1 << 30,
    nat_enabled=False,
)


def record(number: int) -> VMRecord:
    moment = now()
    return VMRecord(
        id=f"{number:064x}",
        name=f"vm{number}",
        image_id="ab" * 32,
        state=VMState.RUNNING,
        created_at=moment,
        updated_at=moment,
        last_touched_at=moment,
        spec=SPEC,
        runtime=VMRuntime(guest_ip=f"127.0.0.{number}"),
    )


def subject(of: VMRecord) -> Subject:
    return cast(Subject, SimpleNamespace(record=of, id=of.id, name=of.name))


@pytest.fixture
def names(tmp_path: Path) -> Names:
    return Names(Settings(bridge_ip="127.0.0.1"), FakeResolved(), resolv_conf=str(tmp_path / "none"))


async def test_a_name_comes_with_the_start_and_goes_with_any_end(names: Names) -> None:
    capability, vm = GuestNames(names), record(2)
    assert names.get(vm.id) is None
    await capability.post_start(subject(vm))
    assert names.get(vm.id) == NamedGuest("vm2", "127.0.0.2", nat=False)
    for _ in range(2):
        await capability.cleanup(subject(vm))
        assert names.get(vm.id) is None


async def test_nat_follows_a_change_of_a_vm_that_runs(names: Names) -> None:
    capability, vm = GuestNames(names), record(2)
    with_nat = msgspec.structs.replace(SPEC, nat_enabled=True)
    assert await capability.apply_change(subject(vm), with_nat)
    assert names.get(vm.id) is None, "it does not run"
    await capability.post_start(subject(vm))
    assert await capability.apply_change(subject(vm), with_nat)
    assert names.get(vm.id) == NamedGuest("vm2", "127.0.0.2", nat=True)


async def test_adopted_vms_have_their_names_at_once(names: Names) -> None:
    capability = GuestNames(names)
    await capability.seed([])
    assert not names._bridge
    await capability.seed([record(2), record(3)])
    assert names._bridge, "the bridge is there: guests are served"
    assert {names.get(record(number).id) is not None for number in (2, 3)} == {True}
    await names.bridge_down()
    await names.close()
