"""When the work of a VM is kept, and what becomes of the VM when it cannot be: VMService over kept work with
memory, a machine that is an entry in a set, and a store of rows that is the product's own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest

from banger.api.requests import CreateVM, KillVM, SetWorkspace
from banger.config.paths import Paths, resolve_paths
from banger.config.settings import Settings
from banger.disk.strategies import RootDisks
from banger.errors import BangerError, ErrorCode
from banger.guest.errors import GuestTimeout
from banger.helper.interface import Helper
from banger.image.service import ImageService
from banger.model.deadlines import Deadlines
from banger.model.progress import ProgressEvent, no_progress
from banger.model.records import VMRecord, now
from banger.model.states import VMState
from banger.network.firewall import Firewall
from banger.network.host import HostNetwork
from banger.store.database import Database
from banger.store.images import ImageTable
from banger.store.vms import VMTable
from banger.vm import keeping
from banger.vm.executor import execute
from banger.vm.handles import HandleCache
from banger.vm.lifecycle import Lifecycle
from banger.vm.planner import Fix
from banger.vm.service import VMService
from banger.vm.services import Services
from banger.vm.subject import Subject
from banger.vmm.protocol import CONSOLE_LOG
from banger.workspace.errors import WorkNotKept
from tests.fakes.workspaces import FakeWorkspaces
from tests.unit.vm.test_service import IMAGE, Disks, Images, Network, no_monitor

pytestmark = pytest.mark.anyio

COMMIT = "ab" * 20
WORKSPACE = SetWorkspace(
    source_path="/home/me/app",
    repo_root="/home/me/app",
    repo_name="app",
    guest_path="/root/repo",
    mode="shallow_overlay",
    head_commit=COMMIT,
    base_commit=COMMIT,
    brought_commit=COMMIT,
    refs={"HEAD": COMMIT},
)


class Machines:
    """Who is alive. What Lifecycle does to machines is led here: that has tests of its own."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        self.calls: list[str] = []
        self.stopping = asyncio.Event()
        self.hangs = False
        self.let_stop = asyncio.Event()
        self.let_stop.set()

    def lead(self, monkeypatch: pytest.MonkeyPatch, works: FakeWorkspaces) -> None:
        async def stop(_lifecycle: Lifecycle, subject: Subject, _progress: object) -> None:
            works.calls.append(f"stop {subject.name}")
            self.stopping.set()
            await self.let_stop.wait()
            self.alive.discard(subject.id)
            await subject.set_state(VMState.STOPPED, last_error="")

        async def kill(_lifecycle: Lifecycle, subject: Subject, _signum: int, *, progress: object) -> None:
            self.alive.discard(subject.id)
            await subject.set_state(VMState.STOPPED, last_error="")

        async def tear_down(
            _lifecycle: Lifecycle,
            subject: Subject,
            target: VMState,
            *,
            last_error: str | None,
            durable: bool = True,
        ) -> None:
            works.calls.append(f"teardown {subject.name}")
            self.alive.discard(subject.id)
            await subject.set_state(target, last_error=last_error, durable=durable)

        async def answers(_vm_dir: str, limit_s: float) -> None:
            if self.hangs:
                raise GuestTimeout("say how it is", limit_s)

        monkeypatch.setattr(keeping, "guest_answers", answers)
        monkeypatch.setattr(Lifecycle, "stop", stop)
        monkeypatch.setattr(Lifecycle, "kill", kill)
        monkeypatch.setattr(Lifecycle, "tear_down", tear_down)
        monkeypatch.setattr(Lifecycle, "alive", lambda _lifecycle, subject: subject.id in self.alive)


class Host:
    """The services, one VM with a workspace, and what was said on the way."""

    def __init__(self, services: Services, works: FakeWorkspaces, machines: Machines) -> None:
        self.services = services
        self.vms = VMService(services)
        self.works = works
        self.machines = machines
        self.said: list[str] = []

    def progress(self, event: ProgressEvent) -> None:
        self.said.append(("warning: " if event.warning else "") + event.message)

    async def vm(self, *, alive: bool, auto_remove: bool = False, brings: bool = True) -> VMRecord:
        request = CreateVM(name="box", start=False, auto_remove=auto_remove)
        record = await self.vms.create(request, no_progress)
        os.mkdir(record.runtime.vm_dir)
        Path(record.runtime.work_disk_path).write_bytes(b"disk")
        if alive:
            self.machines.alive.add(record.id)
            record = msgspec.structs.replace(record, state=VMState.RUNNING)
            await self.services.table.update(record)
        if brings:
            record = await self.vms.set_workspace(record.id, WORKSPACE)
        self.works.calls.clear()
        return record

    def hurry(self, *, at_most_s: float) -> None:
        """No keep may be silent, or take long, from now on."""
        deadlines = Deadlines(
            keep_silence_s=0.2, keep_at_most_s=at_most_s, keep_look_s=0.05, agent_answer_s=0.05
        )
        self.services = msgspec.structs.replace(self.services, deadlines=deadlines)
        self.vms = VMService(self.services)

    def folder(self, record: VMRecord) -> bool:
        return os.path.exists(record.runtime.work_disk_path)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = resolve_paths({"BANGER_HOME": str(tmp_path)})
    os.makedirs(found.vms_dir, mode=0o700)
    return found


@pytest.fixture
async def host(anyio_backend: str, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    database = await Database.open(paths.database)
    await ImageTable(database).put(IMAGE)
    works, machines = FakeWorkspaces(), Machines()
    machines.lead(monkeypatch, works)
    network = Network()
    services = Services(
        settings=Settings(),
        paths=paths,
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
        capabilities=(),
        workspaces=works,
        deadlines=Deadlines(agent_answer_s=0.05),
    )
    yield Host(services, works, machines)
    await database.close()


KEPT = "work of box is kept: banger workspace pull box"


async def test_a_stop_keeps_the_work_while_the_guest_runs(host: Host) -> None:
    record = await host.vm(alive=True)
    stopped = await host.vms.stop(record.id, host.progress)
    assert host.works.calls == ["live box", "stop box"]
    assert stopped.state is VMState.STOPPED
    assert host.said == ["keeping the work in box", KEPT]


async def test_a_stop_of_what_changed_nothing_says_nothing_of_pulling(host: Host) -> None:
    record = await host.vm(alive=True)
    host.works.finds = False
    await host.vms.stop(record.id, host.progress)
    assert host.said == ["keeping the work in box"]


@pytest.mark.parametrize("failure", [WorkNotKept("git said no"), OSError(28, "No space"), KeyError("bug")])
async def test_a_stop_whose_guest_cannot_be_asked_reads_the_disk_afterwards(
    host: Host, failure: Exception
) -> None:
    record = await host.vm(alive=True)
    host.works.live = failure
    await host.vms.stop(record.id, host.progress)
    assert host.works.calls == ["live box", "stop box", "disk box"]
    assert host.said[-1] == KEPT


async def test_a_stop_whose_work_cannot_be_kept_stops_and_warns(host: Host) -> None:
    record = await host.vm(alive=True)
    host.works.live = host.works.disk = WorkNotKept("git said no")
    stopped = await host.vms.stop(record.id, host.progress)
    assert stopped.state is VMState.STOPPED
    assert host.said[-1] == (
        "warning: the work in box could not be kept: git said no; it is on the VM's disk still"
    )
    assert host.folder(record)


async def test_a_guest_that_never_answers_holds_a_stop_no_longer_than_its_deadline(host: Host) -> None:
    host.hurry(at_most_s=0.5)
    record = await host.vm(alive=True)
    host.works.hold = asyncio.Event()
    await host.vms.stop(record.id, host.progress)
    assert host.works.calls == ["live box", "stop box", "disk box"]
    assert "not done after 0.5 s" in host.said[-1]


async def test_a_guest_that_shows_life_is_waited_for(host: Host) -> None:
    host.hurry(at_most_s=60)
    record = await host.vm(alive=True)
    host.works.hold = done = asyncio.Event()

    async def work() -> None:
        with open(f"{record.runtime.vm_dir}/{CONSOLE_LOG}", "ab", buffering=0) as console:
            for _ in range(60):
                console.write(b".")
                await asyncio.sleep(0.01)
        done.set()

    await asyncio.gather(host.vms.stop(record.id, host.progress), work())
    assert host.works.calls == ["live box", "stop box"]


async def test_a_timeout_inside_a_keep_is_not_taken_for_its_deadline(host: Host) -> None:
    record = await host.vm(alive=True)
    host.works.live = TimeoutError()
    with pytest.raises(BangerError, match="could not be kept: timed out"):
        await host.vms.keep(record.id, no_progress)


async def test_a_guest_that_hangs_is_not_asked_for_its_work(host: Host) -> None:
    record = await host.vm(alive=True)
    host.machines.hangs = True
    await host.vms.stop(record.id, host.progress)
    assert host.works.calls == ["stop box", "disk box"]


async def test_a_stop_of_a_dead_vm_keeps_nothing(host: Host) -> None:
    record = await host.vm(alive=False)
    await host.vms.stop(record.id, host.progress)
    assert host.works.calls == ["stop box"]


async def test_a_kill_keeps_nothing(host: Host) -> None:
    record = await host.vm(alive=True)
    await host.vms.kill(record.id, KillVM(signal="KILL"), progress=host.progress)
    assert host.works.calls == []


async def test_a_stale_vm_is_stopped_with_its_work_kept(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    record = await host.vm(alive=True)

    async def unused(*_anything: object) -> bool:
        return False

    monkeypatch.setattr(host.vms._vitals, "in_use", unused)
    assert await host.vms.stop_if_stale(record.id, after_s=-1.0)
    assert host.works.calls == ["live box", "stop box"]


async def test_a_delete_keeps_before_it_ends_anything(host: Host) -> None:
    record = await host.vm(alive=True)
    await host.vms.delete(record.id, host.progress)
    assert host.works.calls == ["live box", "teardown box", "gone"]
    assert host.said == ["keeping the work in box", "deleting box", KEPT]
    assert host.works.stores[record.id].changed
    assert not host.folder(record)
    assert list(host.vms.list()) == []


async def test_a_delete_takes_the_store_along_when_nothing_is_new_in_it(host: Host) -> None:
    record = await host.vm(alive=True)
    host.works.finds = False
    await host.vms.delete(record.id, host.progress)
    assert host.works.stores == {}
    assert host.said == ["keeping the work in box", "deleting box"]


async def test_a_delete_whose_guest_cannot_be_asked_ends_it_and_reads_its_disk(host: Host) -> None:
    record = await host.vm(alive=True)
    host.works.live = WorkNotKept("git said no")
    await host.vms.delete(record.id, host.progress)
    assert host.works.calls == ["live box", "teardown box", "disk box", "teardown box", "gone"]
    assert host.said[-1] == KEPT


async def test_a_dead_vm_is_read_from_its_disk_before_its_folder_goes(host: Host) -> None:
    record = await host.vm(alive=False)
    await host.vms.delete_if_not_running(record.id, host.progress)
    assert host.works.calls == ["disk box", "teardown box", "gone"]
    assert not host.folder(record)


async def test_the_disk_is_not_read_while_anything_may_write_it(host: Host) -> None:
    """A VM whose teardown failed: state error, and its machine there still."""
    record = await host.vm(alive=False)
    await host.services.table.update(msgspec.structs.replace(record, state=VMState.ERROR))
    host.services.cache.change(record.id, record.runtime.vm_dir, tap_device="tap-fc-x")
    await host.vms.delete(record.id, host.progress)
    assert host.works.calls == ["teardown box", "disk box", "teardown box", "gone"]


@pytest.mark.parametrize("alive", [True, False])
async def test_a_delete_that_cannot_keep_fails_and_removes_nothing(host: Host, alive: bool) -> None:
    record = await host.vm(alive=alive)
    host.works.live, host.works.disk = WorkNotKept("git said no"), OSError(5, "Input/output error")
    with pytest.raises(BangerError) as caught:
        await host.vms.delete(record.id, host.progress)
    assert caught.value.code is ErrorCode.WORK_NOT_KEPT
    assert caught.value.brief == "the work in box could not be kept: Input/output error"
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("banger vm delete --discard-work box")
    assert caught.value.details is not None
    assert ("git said no" in caught.value.details) is alive
    assert host.folder(record)
    assert [vm.name for vm in host.vms.list()] == ["box"]
    host.works.disk = None
    await host.vms.delete(record.id, host.progress)
    assert host.said[-1] == KEPT


@pytest.mark.parametrize("alive", [True, False])
async def test_a_delete_that_would_lose_history_fails_and_ends_nothing(host: Host, alive: bool) -> None:
    record = await host.vm(alive=alive)
    host.works.files_only = "git index-pack failed"
    with pytest.raises(BangerError) as caught:
        await host.vms.delete(record.id, host.progress)
    assert caught.value.code is ErrorCode.WORK_NOT_KEPT
    assert caught.value.brief == (
        "the work in box could not be kept: only its files, not its history: git index-pack failed"
    )
    assert caught.value.hint is not None
    assert "banger workspace pull box" in caught.value.hint
    assert caught.value.hint.endswith("banger vm delete --discard-work box")
    assert host.folder(record)
    assert (record.id in host.machines.alive) is alive
    await host.vms.stop(record.id, host.progress)  # its disk stays
    host.works.files_only = ""
    await host.vms.delete(record.id, host.progress)
    assert host.said[-1] == KEPT


@pytest.mark.parametrize("alive", [True, False])
async def test_discarded_work_is_neither_kept_nor_left(host: Host, alive: bool) -> None:
    record = await host.vm(alive=alive)
    await host.vms.keep(record.id, no_progress)
    host.works.calls.clear()
    await host.vms.delete(record.id, host.progress, discard_work=True)
    assert host.works.calls == ["teardown box", "forget"]
    assert host.works.stores == {}
    assert host.said == ["deleting box"]


async def test_a_vm_whose_disk_is_gone_can_be_deleted(host: Host) -> None:
    """The folder went, the row did not: what was on the disk was kept by the delete that removed it."""
    record = await host.vm(alive=False)
    os.unlink(record.runtime.work_disk_path)
    await host.vms.delete(record.id, host.progress)
    assert host.works.calls == ["teardown box", "gone"]


async def test_a_vm_without_a_workspace_pays_nothing(host: Host) -> None:
    record = await host.vm(alive=True, brings=False)
    assert not await host.vms.keep_work(record.id)
    await host.vms.stop(record.id, host.progress)
    await host.vms.delete(record.id, host.progress)
    assert host.works.calls == ["stop box", "teardown box"]
    assert host.said == ["deleting box"]


async def test_a_delete_that_is_cancelled_while_it_keeps_leaves_all_as_it_was(host: Host) -> None:
    record = await host.vm(alive=True)
    host.works.hold = asyncio.Event()
    deleting = asyncio.create_task(host.vms.delete(record.id, no_progress))
    await host.works.keeping.wait()
    deleting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deleting
    assert list(host.vms.list()) == [record]
    assert host.works.calls == ["live box"]
    assert host.folder(record)


async def aborted(host: Host, task: asyncio.Task[VMRecord], by: Callable[[], Awaitable[object]]) -> str:
    """How the first ends when the second comes in the middle of its keep."""
    await asyncio.wait_for(host.works.keeping.wait(), 50)
    await by()
    with pytest.raises(BangerError) as caught:
        await task
    assert caught.value.code is ErrorCode.ABORTED
    return caught.value.brief


async def test_a_delete_ends_a_stop_that_keeps(host: Host) -> None:
    record = await host.vm(alive=True)
    host.works.hold = asyncio.Event()
    stopping = asyncio.create_task(host.vms.stop(record.id, no_progress))
    await asyncio.wait_for(host.works.keeping.wait(), 50)
    deleting = asyncio.create_task(host.vms.delete(record.id, no_progress))
    host.works.hold.set()
    with pytest.raises(BangerError, match="box: aborted by delete"):
        await stopping
    await deleting
    assert host.works.calls == ["live box", "live box", "teardown box", "gone"]


async def test_a_kill_ends_a_delete_that_keeps_and_the_vm_stays(host: Host) -> None:
    record = await host.vm(alive=True)
    host.works.hold = asyncio.Event()
    deleting = asyncio.create_task(host.vms.delete(record.id, no_progress))
    request = KillVM(signal="KILL")
    why = await aborted(host, deleting, lambda: host.vms.kill(record.id, request, progress=no_progress))
    assert why == "box: aborted by kill"
    (left,) = host.vms.list()
    assert left.state is VMState.STOPPED
    assert host.folder(record)


async def test_a_delete_that_discards_ends_one_that_keeps(host: Host) -> None:
    record = await host.vm(alive=True)
    host.works.hold = asyncio.Event()
    deleting = asyncio.create_task(host.vms.delete(record.id, no_progress))
    by = host.vms.delete
    why = await aborted(host, deleting, lambda: by(record.id, no_progress, discard_work=True))
    assert why == "box: aborted by delete --discard-work"
    assert list(host.vms.list()) == []


async def test_two_deletes_keep_once_and_the_later_finds_nothing(host: Host) -> None:
    record = await host.vm(alive=True)
    host.works.hold = asyncio.Event()
    first = asyncio.create_task(host.vms.delete(record.id, no_progress))
    await host.works.keeping.wait()
    second = asyncio.create_task(host.vms.delete(record.id, no_progress))
    await asyncio.sleep(0)
    host.works.hold.set()
    await first
    with pytest.raises(BangerError, match="deleted meanwhile"):
        await second
    assert host.works.calls.count("live box") == 1


async def test_the_round_keeps_what_was_written_since_and_touches_nothing(host: Host) -> None:
    record = await host.vm(alive=True)
    assert await host.vms.keep_work(record.id)
    assert not await host.vms.keep_work(record.id)
    os.utime(record.runtime.work_disk_path, ns=(1, 1))
    assert await host.vms.keep_work(record.id)
    assert host.works.calls == ["live box", "live box"]
    assert host.vms.resolve("box").last_touched_at == record.last_touched_at


async def test_a_round_whose_keep_failed_tries_again(host: Host) -> None:
    record = await host.vm(alive=True)
    host.works.live = WorkNotKept("git said no")
    for _ in range(2):
        with pytest.raises(BangerError, match="git said no"):
            await host.vms.keep_work(record.id)
    assert host.works.calls == ["live box", "live box"]


async def test_the_round_leaves_dead_and_busy_vms_alone(host: Host) -> None:
    record = await host.vm(alive=False)
    assert not await host.vms.keep_work(record.id)
    host.machines.alive.add(record.id)
    async with host.vms._locks.hold(record.id):
        assert not await host.vms.keep_work(record.id)
    assert host.works.calls == []


@pytest.mark.parametrize("what", ["stop", "delete", "keep", "set_workspace"])
async def test_the_round_gives_way_to_whoever_wants_the_vm(host: Host, what: str) -> None:
    record = await host.vm(alive=True)
    host.works.hold = asyncio.Event()
    background = asyncio.create_task(host.vms.keep_work(record.id))
    await host.works.keeping.wait()
    others: dict[str, Callable[[], Awaitable[object]]] = {
        "stop": lambda: host.vms.stop(record.id, no_progress),
        "delete": lambda: host.vms.delete(record.id, no_progress),
        "keep": lambda: host.vms.keep(record.id, no_progress),
        "set_workspace": lambda: host.vms.set_workspace(record.id, WORKSPACE),
    }
    wanted = asyncio.ensure_future(others[what]())
    assert await asyncio.wait_for(background, 50) is False
    host.works.hold.set()
    await wanted


async def test_a_keep_on_request_asks_the_guest_or_reads_the_disk(host: Host) -> None:
    record = await host.vm(alive=True)
    assert (await host.vms.keep(record.id, host.progress)).how == "guest-git"
    host.machines.alive.clear()
    assert (await host.vms.keep(record.id, host.progress)).how == "disk"
    assert host.said == ["keeping the work in box"] * 2


async def test_a_keep_without_a_workspace_says_how_to_get_one(host: Host) -> None:
    record = await host.vm(alive=True, brings=False)
    with pytest.raises(BangerError) as caught:
        await host.vms.keep(record.id, no_progress)
    assert caught.value.code is ErrorCode.WRONG_STATE
    assert "banger vm workspace prepare box" in (caught.value.hint or "")


async def test_what_removes_itself_stays_when_its_work_cannot_be_kept(host: Host) -> None:
    record = await host.vm(alive=True, auto_remove=True)
    host.works.live = host.works.disk = WorkNotKept("git said no")
    with pytest.raises(BangerError) as caught:
        await host.vms.delete_by_itself(record.id, no_progress)
    assert caught.value.code is ErrorCode.WORK_NOT_KEPT
    left = host.vms.resolve("box")
    assert not left.auto_remove
    assert left.runtime.last_error == "not removed: the work in box could not be kept: git said no"
    assert host.folder(record)


async def test_what_removes_itself_is_kept_and_goes(host: Host) -> None:
    record = await host.vm(alive=True, auto_remove=True)
    await host.vms.delete_by_itself(record.id, no_progress)
    assert list(host.vms.list()) == []
    assert host.works.stores[record.id].changed


async def test_a_store_that_cannot_be_looked_after_is_a_warning(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await host.vm(alive=True)

    async def fails(_vm_id: str) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(host.works, "vm_gone", fails)
    await host.vms.delete(record.id, host.progress)
    assert list(host.vms.list()) == []
    assert host.said[-1].startswith("warning: what was kept of box could not be looked after")


async def test_the_daemons_start_removes_empty_stores_of_vms_that_went(host: Host) -> None:
    """A crash came between the row and the store."""
    record = await host.vm(alive=False)
    await host.vms.keep(record.id, no_progress)
    for vm_id, changed in (("1" * 64, False), ("2" * 64, True)):
        host.works.stores[vm_id] = msgspec.structs.replace(
            host.works.stores[record.id], vm_id=vm_id, changed=changed, kept_at=now()
        )
    host.works.age(record.id, changed=False)
    await host.vms._keeping.sweep({record.id})
    assert set(host.works.stores) == {record.id, "2" * 64}


async def test_the_audit_names_what_a_keep_left_and_removes_it(host: Host, paths: Paths) -> None:
    record = await host.vm(alive=False)
    for name in ("staging-0123", record.id, "3" * 64):
        os.makedirs(f"{paths.work_dir}/{name}/files")
    Path(paths.work_dir, "notes").write_text("somebody's own")
    found = host.vms._keeping.findings(busy=False)
    assert [(finding.name.rpartition("/")[2], finding.fix) for finding in found] == [
        ("notes", Fix.NONE),
        ("staging-0123", Fix.REMOVE_FOLDER),
    ]
    assert [finding.kind for finding in host.vms._keeping.findings(busy=True)] == ["file"]
    assert (
        await execute(
            found,
            helper=cast(Helper, None),
            firewall=cast(Firewall, None),
            vms_dir=paths.vms_dir,
            work_dir=paths.work_dir,
        )
        == []
    )
    assert sorted(os.listdir(paths.work_dir)) == sorted([record.id, "3" * 64, "notes"])
