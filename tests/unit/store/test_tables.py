"""The tables: records come back as they went in, and broken constraints are said in words."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.model.ids import new_vm_id
from banger.model.records import Image, VMRecord, VMRuntime, VMSpec, VMStats, Workspace
from banger.model.states import VMState
from banger.store.codec import text_time, time_text
from banger.store.database import Database
from banger.store.images import ImageTable
from banger.store.settings import SettingTable
from banger.store.vms import COLUMNS, VMTable

pytestmark = pytest.mark.anyio

MOMENT = datetime(2026, 11, 21, 4, 5, 6, tzinfo=UTC)
IMAGE = Image(
    id="a" * 64, name="debian-bookworm", created_at=MOMENT, updated_at=MOMENT, docker=True, build_size=5
)


def vm(name: str = "calm-otter", *, ip: str = "172.16.0.2", **changes: object) -> VMRecord:
    record = VMRecord(
        id=new_vm_id(),
        name=name,
        image_id=IMAGE.id,
        state=VMState.CREATED,
        created_at=MOMENT,
        updated_at=MOMENT,
        last_touched_at=MOMENT,
        spec=VMSpec(),
        runtime=VMRuntime(guest_ip=ip),
    )
    return msgspec.structs.replace(record, **changes)


@pytest.fixture
async def table(database: Database) -> VMTable:
    await ImageTable(database).put(IMAGE)
    return VMTable(database)


def test_every_field_of_the_record_is_a_column() -> None:
    assert set(COLUMNS) == {field.name for field in msgspec.structs.fields(VMRecord)}


async def test_what_a_creation_asks_is_told_without_the_records(table: VMTable) -> None:
    assert (table.taken(), table.promised_mib(), table.is_empty()) == ((set(), set()), 0, True)
    runs = VMSpec(memory_mib=256)
    await table.insert(vm("one", ip="172.16.0.2", state=VMState.RUNNING, spec=runs))
    await table.insert(vm("two", ip="172.16.0.3", state=VMState.RUNNING, spec=runs))
    await table.insert(vm("three", ip="172.16.0.4"))
    assert table.taken() == ({"one", "two", "three"}, {"172.16.0.2", "172.16.0.3", "172.16.0.4"})
    assert (table.promised_mib(), table.is_empty()) == (512, False)


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
MOMENTS = st.datetimes(
    min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC)
).map(lambda moment: moment.replace(microsecond=0))
RECORDS = st.builds(
    vm,
    ip=TEXT,
    state=st.sampled_from(VMState),
    auto_remove=st.booleans(),
    init=TEXT,
    created_at=MOMENTS,
    updated_at=MOMENTS,
    last_touched_at=MOMENTS,
    spec=st.builds(VMSpec, vcpu_count=st.integers(1, 32), nat_enabled=st.booleans()),
    stats=st.builds(
        VMStats,
        collected_at=st.none() | MOMENTS,
        cpu_percent=st.none() | st.floats(0, 1000),
        rss_bytes=st.none() | st.integers(0, 1 << 62),
        metrics_raw=st.none() | st.dictionaries(TEXT, st.integers(0, 1 << 53) | TEXT, max_size=3),
    ),
    workspace=st.none()
    | st.builds(Workspace, source_path=TEXT, readonly=st.booleans(), prepared_at=st.none() | MOMENTS),
)


@given(records=st.lists(RECORDS, min_size=1, max_size=5))
@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_records_come_back_as_they_went_in(table: VMTable, records: list[VMRecord]) -> None:
    for old in table.list():
        await table.delete(old.id)
    distinct = {record.runtime.guest_ip: record for record in records}
    stored = [msgspec.structs.replace(r, name=f"vm-{n}") for n, r in enumerate(distinct.values())]
    for record in stored:
        await table.insert(record)
    assert {record.id: record for record in table.list()} == {record.id: record for record in stored}
    for record in stored:
        assert table.get(record.id) == record
        assert table.by_name(record.name) == record


@given(MOMENTS, MOMENTS)
def test_times_sort_as_text(one: datetime, other: datetime) -> None:
    assert text_time(time_text(one)) == one
    assert (time_text(one) < time_text(other)) == (one < other)


async def test_the_list_is_oldest_first(table: VMTable) -> None:
    for number, age in enumerate((2, 3, 1)):
        await table.insert(
            vm(f"vm-{number}", ip=f"172.16.0.{number + 2}", created_at=MOMENT - timedelta(days=age))
        )
    assert [record.name for record in table.list()] == ["vm-1", "vm-0", "vm-2"]


async def test_a_taken_name_is_said(table: VMTable) -> None:
    await table.insert(vm())
    with pytest.raises(BangerError, match="a VM named calm-otter exists already") as caught:
        await table.insert(vm(ip="172.16.0.3"))
    assert caught.value.code is ErrorCode.ALREADY_EXISTS
    assert len(table.list()) == 1


async def test_of_many_reservations_of_a_name_one_wins(table: VMTable) -> None:
    inserts = [table.insert(vm(ip=f"172.16.0.{number}")) for number in range(2, 22)]
    outcomes = await asyncio.gather(*inserts, return_exceptions=True)
    assert outcomes.count(None) == 1
    assert len(table.list()) == 1


async def test_an_address_is_given_once(table: VMTable) -> None:
    await table.insert(vm("a"))
    with pytest.raises(BangerError, match=r"172\.16\.0\.2 is another VM's") as caught:
        await table.insert(vm("b"))
    assert caught.value.code is ErrorCode.ALREADY_EXISTS
    await table.insert(vm("c", ip=""))
    await table.insert(vm("d", ip=""))


async def test_an_image_that_went_away_is_said(table: VMTable) -> None:
    with pytest.raises(BangerError, match="not there any more") as caught:
        await table.insert(vm(image_id="b" * 64))
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_an_update_never_turns_the_last_touch_back(table: VMTable) -> None:
    record = vm()
    await table.insert(record)
    later = MOMENT + timedelta(hours=1)
    assert await table.touch(record.id, later)
    await table.update(msgspec.structs.replace(record, state=VMState.STARTING))
    assert await table.touch(record.id, MOMENT)
    stored = table.get(record.id)
    assert stored is not None
    assert (stored.state, stored.last_touched_at) == (VMState.STARTING, later)


async def test_a_vm_that_is_gone_is_not_made_again(table: VMTable) -> None:
    record = vm()
    await table.insert(record)
    assert await table.delete(record.id)
    assert not await table.delete(record.id)
    assert not await table.touch(record.id, MOMENT)
    assert not await table.update_stats(record.id, VMStats(rss_bytes=1))
    with pytest.raises(BangerError) as caught:
        await table.update(record)
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert table.get(record.id) is None


async def test_an_entry_of_an_older_version_reads_as_empty(table: VMTable, database: Database) -> None:
    def write_old(connection: sqlite3.Connection) -> None:
        connection.execute(
            "INSERT INTO vms (id, name, image_id, state, created_at, updated_at, last_touched_at, runtime)"
            " VALUES ('1', 'old', ?, 'stopped', ?, ?, ?, '{\"unknown_of_a_newer\": 1}')",
            (IMAGE.id, *[time_text(MOMENT)] * 3),
        )

    await database.write(write_old)
    record = table.get("1")
    assert record is not None
    assert record == msgspec.structs.replace(
        vm("old", ip="", state=VMState.STOPPED), id="1", spec=VMSpec(), runtime=VMRuntime()
    )


@pytest.mark.parametrize(
    ("column", "value"), [("state", "dancing"), ("spec", '{"vcpu_count":"two"}'), ("created_at", "yesterday")]
)
async def test_a_damaged_entry_names_its_vm(
    table: VMTable, database: Database, column: str, value: str
) -> None:
    record = vm()
    await table.insert(record)
    await database.write(
        lambda connection: connection.execute(f"UPDATE vms SET {column} = ?", (value,)).rowcount
    )
    with pytest.raises(BangerError, match="entry of VM calm-otter is damaged") as caught:
        table.list()
    assert caught.value.code is ErrorCode.STORE_ERROR


async def test_a_path_that_is_not_utf8_cannot_be_stored(table: VMTable) -> None:
    with pytest.raises(BangerError) as caught:
        await table.insert(vm(workspace=Workspace(source_path="/home/\udcff")))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.brief.isascii()


async def test_images_come_back_and_are_replaced_by_id(database: Database) -> None:
    images = ImageTable(database)
    await images.put(IMAGE)
    changed = msgspec.structs.replace(IMAGE, build_size=7)
    await images.put(changed)
    assert images.list() == [changed]
    assert images.get(IMAGE.id) == images.by_name(IMAGE.name) == changed
    assert images.get("b") is None
    assert images.by_name("b") is None
    with pytest.raises(BangerError) as caught:
        await images.put(msgspec.structs.replace(IMAGE, id="b" * 64))
    assert caught.value.code is ErrorCode.ALREADY_EXISTS


async def test_an_image_in_use_is_not_deleted(table: VMTable, database: Database) -> None:
    images = ImageTable(database)
    record = vm()
    await table.insert(record)
    with pytest.raises(BangerError) as caught:
        await images.delete(IMAGE.id)
    assert caught.value.code is ErrorCode.IN_USE
    assert caught.value.data == {"vms": ["calm-otter"]}
    await table.delete(record.id)
    assert await images.delete(IMAGE.id)
    assert not await images.delete(IMAGE.id)


async def test_settings(database: Database) -> None:
    settings = SettingTable(database)
    assert settings.get("sysctl/a") is None
    await settings.put("sysctl/a", "0")
    await settings.put("other", "x")
    assert await settings.put_new("sysctl/a", "1") == "0"
    assert await settings.put_new("sysctl/b_", "2") == "2"
    assert settings.items("sysctl/") == {"sysctl/a": "0", "sysctl/b_": "2"}
    assert settings.items("sysctl/b_") == {"sysctl/b_": "2"}
    await settings.put("sysctl/a", "9")
    assert settings.items() == {"other": "x", "sysctl/a": "9", "sysctl/b_": "2"}
    assert await settings.delete("sysctl/a")
    assert not await settings.delete("sysctl/a")
