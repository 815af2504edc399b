"""VMService's own changes, outside the steps: what a failure or a cancellation in the middle leaves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest

from banger.api.requests import CreateVM, SetVM
from banger.config.paths import Paths, resolve_paths
from banger.config.settings import Settings
from banger.disk.strategies import RootDisks
from banger.errors import ErrorCode
from banger.helper.interface import Helper
from banger.image.service import ImageService
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.model.records import Image, now
from banger.model.states import VMState
from banger.network.firewall import Firewall
from banger.network.host import HostNetwork
from banger.store.database import Database
from banger.store.images import ImageTable
from banger.store.vms import VMTable
from banger.vm.errors import StepFailed
from banger.vm.handles import HandleCache
from banger.vm.nat import Nat
from banger.vm.service import VMService
from banger.vm.services import Services
from banger.vmm.protocol import Monitor
from tests.fakes.workspaces import FakeWorkspaces

pytestmark = pytest.mark.anyio

IMAGE = Image(
    id="ab" * 32,
    name="debian",
    rootfs_path="rootfs.ext4",
    kernel_path="vmlinux",
    created_at=now(),
    updated_at=now(),
)


class Images:
    async def resolve(self, _reference: str, _progress: Progress) -> Image:
        return IMAGE


class Disks:
    async def check_space(self) -> None:
        pass

    def overlay_path(self, vm_dir: str) -> str:
        return f"{vm_dir}/overlay.ext4"

    def of(self, _record: object) -> Disks:
        return self

    async def detach(self, *_arguments: object, **_more: object) -> None:
        pass


class Network:
    """As far as removals go. rows: how many VMs there were while the bridge was being removed."""

    class Firewall:
        async def refresh(self) -> None:
            pass

    def __init__(self) -> None:
        self.firewall = self.Firewall()
        self.rows: list[int] = []
        self.count: Callable[[], int] = int
        self.removing = asyncio.Event()

    async def release_tap(self, _name: str, _vm_id: str, **_forget: object) -> None:
        pass

    def warm(self) -> None:
        pass

    async def shutdown(self) -> None:
        self.removing.set()
        for _ in range(100):  # longer than a create takes, were it let in
            await asyncio.sleep(0.001)
            self.rows.append(self.count())


class Failing:
    """The crash point: does at one point what a test says."""

    def __init__(self) -> None:
        self.point = ""
        self.cancels = False

    def __call__(self, point: str) -> None:
        if point != self.point:
            return
        self.point = ""
        if not self.cancels:
            raise OSError(16, os.strerror(16))
        task = asyncio.current_task()
        assert task is not None
        task.cancel()


async def no_monitor(*_arguments: object) -> Monitor:
    raise AssertionError("nothing is started here")


async def in_the_way(guest_ip: str) -> tuple[str, ...]:
    return (f"Docker drops what {guest_ip} sends out",)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = resolve_paths({"BANGER_HOME": str(tmp_path)})
    os.makedirs(found.vms_dir, mode=0o700)
    return found


@pytest.fixture
def failing() -> Failing:
    return Failing()


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
async def vms(
    anyio_backend: str, paths: Paths, failing: Failing, network: Network
) -> AsyncIterator[VMService]:
    database = await Database.open(paths.database)
    await ImageTable(database).put(IMAGE)
    services = Services(
        settings=Settings(),
        paths=paths,
        workspaces=FakeWorkspaces(),
        instance="0" * 16,
        boot_id="boot",
        table=VMTable(database),
        cache=HandleCache("boot"),
        helper=cast(Helper, None),
        images=cast(ImageService, Images()),
        network=cast(HostNetwork, network),
        disks=cast(RootDisks, Disks()),
        find_monitor=no_monitor,
        find_monitor_of=no_monitor,
        capabilities=(Nat(cast(Firewall, network.firewall), in_the_way),),
    )
    yield VMService(services, crash_point=failing)
    await database.close()


REQUEST = CreateVM(name="box", start=False)


async def test_a_create_that_is_cancelled_as_its_row_is_written_leaves_none(
    vms: VMService, failing: Failing
) -> None:
    failing.point, failing.cancels = "create:reserve:before", True
    creating = asyncio.create_task(vms.create(REQUEST, no_progress))
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert list(vms.list()) == []
    assert (await vms.create(REQUEST, no_progress)).name == "box"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_reservation_that_fails_is_named_and_leaves_no_row(
    vms: VMService, failing: Failing, when: str
) -> None:
    failing.point = f"create:reserve:{when}"
    with pytest.raises(StepFailed, match="create box: reserve: Device or resource busy") as caught:
        await vms.create(REQUEST, no_progress)
    assert caught.value.code is ErrorCode.HOST_UNSUITABLE
    assert list(vms.list()) == []


@pytest.mark.parametrize("point", ["delete:folder:before", "delete:folder:after", "delete:row:before"])
async def test_a_deletion_that_fails_half_way_is_an_error_and_can_be_repeated(
    vms: VMService, failing: Failing, point: str
) -> None:
    record = await vms.create(REQUEST, no_progress)
    os.mkdir(record.runtime.vm_dir)
    failing.point = point
    part = point.split(":")[1]
    with pytest.raises(StepFailed, match=f"delete box: {part}: Device or resource busy"):
        await vms.delete(record.id, no_progress)
    (left,) = vms.list()
    assert left.state is VMState.ERROR
    assert f"delete box: {part}" in left.runtime.last_error
    await vms.delete(record.id, no_progress)
    assert list(vms.list()) == []
    assert not os.path.exists(record.runtime.vm_dir)


async def test_a_first_vm_waits_while_the_last_ones_bridge_is_removed(
    vms: VMService, network: Network
) -> None:
    """It would find the bridge ready, and then gone."""
    network.count = lambda: len(vms.list())
    last = await vms.create(REQUEST, no_progress)
    deleting = asyncio.create_task(vms.delete(last.id, no_progress))
    await network.removing.wait()
    await vms.create(CreateVM(name="next", start=False), no_progress)
    await deleting
    assert set(network.rows) == {0}


async def test_nat_that_comes_while_it_runs_is_warned_of_as_at_a_start(vms: VMService, paths: Paths) -> None:
    """Once: who has NAT already has heard, and who does not run will."""
    record = await vms.create(REQUEST, no_progress)
    said: list[ProgressEvent] = []

    async def change(**fields: bool | int) -> list[tuple[str, bool]]:
        said.clear()
        await vms.set(record.id, msgspec.convert(fields, SetVM), progress=said.append)
        return [(event.message, event.warning) for event in said if event.step == "warning"]

    assert await change(nat=True) == []  # it does not run
    assert await change(nat=False) == []
    (row,) = vms.list()
    database = await Database.open(paths.database)
    runtime = msgspec.structs.replace(row.runtime, tap_device="tap-fc-1")
    await VMTable(database).update(msgspec.structs.replace(row, runtime=runtime))
    await database.close()
    assert await change(vcpu_count=1) == []
    assert await change(nat=True) == [(f"Docker drops what {row.runtime.guest_ip} sends out", True)]
    assert await change(nat=True) == []
    assert await change(nat=False) == []
