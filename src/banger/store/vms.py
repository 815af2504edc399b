"""The table of VMs: what a VM is (VMRecord), never what is currently true of it.

Used by vm/ through the methods here; nothing else writes it. Each write is one transaction. Handles
are not in it: only their mirror in VMRuntime, which a teardown falls back on.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime

from banger.errors import ErrorCode
from banger.model.records import VMRecord, VMRuntime, VMSpec, VMStats, Workspace
from banger.model.states import VMState
from banger.store.codec import json_part, json_text, text_time, time_text
from banger.store.database import Database, Row
from banger.store.errors import StoreError

COLUMNS = (
    "id",
    "name",
    "image_id",
    "state",
    "auto_remove",
    "init",
    "created_at",
    "updated_at",
    "last_touched_at",
    "spec",
    "runtime",
    "stats",
    "workspace",
)
"""In the order of _values and _record; the names of VMRecord's fields (a test compares them)."""

_ADDRESS = "json_extract(runtime, '$.guest_ip')"
"""As the index vms_guest_ip says it."""
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM vms"
_INSERT = f"INSERT INTO vms ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
# touch() comes without the VM's lock: whoever holds an older record must not turn its time back
_ASSIGNMENTS = ", ".join(
    f"{name} = max({name}, ?)" if name == "last_touched_at" else f"{name} = ?" for name in COLUMNS[1:]
)
_UPDATE = f"UPDATE vms SET {_ASSIGNMENTS} WHERE id = ?"


class VMTable:
    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self) -> list[VMRecord]:
        """All, oldest first."""
        return [_record(row) for row in self._database.read(f"{_SELECT} ORDER BY created_at, name")]

    def get(self, vm_id: str) -> VMRecord | None:
        rows = self._database.read(f"{_SELECT} WHERE id = ?", (vm_id,))
        return _record(rows[0]) if rows else None

    def by_name(self, name: str) -> VMRecord | None:
        rows = self._database.read(f"{_SELECT} WHERE name = ?", (name,))
        return _record(rows[0]) if rows else None

    def taken(self) -> tuple[set[str], set[str]]:
        """(names, guests' addresses) of all, from the indexes alone: a tenth of what `list` takes."""
        names = self._database.read("SELECT name FROM vms")
        addresses = self._database.read(f"SELECT {_ADDRESS} FROM vms WHERE {_ADDRESS} > ''")
        return {str(name) for (name,) in names}, {str(address) for (address,) in addresses}

    def promised_mib(self) -> int:
        """The memory of all that run, in MiB."""
        sql = "SELECT total(json_extract(spec, '$.memory_mib')) FROM vms WHERE state = ?"
        ((promised,),) = self._database.read(sql, (VMState.RUNNING.value,))
        return int(promised or 0)

    def is_empty(self) -> bool:
        return not self._database.read("SELECT 1 FROM vms LIMIT 1")

    async def insert(self, record: VMRecord) -> None:
        """Reserve name and address with one row: ALREADY_EXISTS when either was taken meanwhile,
        NOT_FOUND when the image was deleted meanwhile."""
        values = _values(record)

        def insert(connection: sqlite3.Connection) -> None:
            _execute(connection, _INSERT, values, record=record)

        await self._database.write(insert)

    async def update(self, record: VMRecord, *, durable: bool = True) -> None:
        """The whole row; last_touched_at never goes back. NOT_FOUND when there is no such VM any more.

        durable: see Database.write.
        """
        identifier, *values = _values(record)

        def update(connection: sqlite3.Connection) -> int:
            return _execute(connection, _UPDATE, [*values, identifier], record=record)

        if not await self._database.write(update, durable=durable):
            raise StoreError(ErrorCode.NOT_FOUND, f"the VM {record.name} is not in the database any more")

    async def update_stats(self, vm_id: str, stats: VMStats) -> bool:
        """False when there is no such VM any more. Not durable: figures of the last seconds."""
        text = json_text(stats)

        def update(connection: sqlite3.Connection) -> bool:
            return connection.execute("UPDATE vms SET stats = ? WHERE id = ?", (text, vm_id)).rowcount > 0

        return await self._database.write(update, durable=False)

    async def touch(self, vm_id: str, moment: datetime) -> bool:
        """last_touched_at := moment, unless it is later already. False without such a VM. Not durable."""
        text = time_text(moment)

        def touch(connection: sqlite3.Connection) -> bool:
            sql = "UPDATE vms SET last_touched_at = max(last_touched_at, ?) WHERE id = ?"
            return connection.execute(sql, (text, vm_id)).rowcount > 0

        return await self._database.write(touch, durable=False)

    async def delete(self, vm_id: str) -> bool:
        """False when there was none: no error."""

        def delete(connection: sqlite3.Connection) -> bool:
            return connection.execute("DELETE FROM vms WHERE id = ?", (vm_id,)).rowcount > 0

        return await self._database.write(delete)


def _values(record: VMRecord) -> list[str | int | None]:
    return [
        record.id,
        record.name,
        record.image_id,
        record.state.value,
        int(record.auto_remove),
        record.init,
        time_text(record.created_at),
        time_text(record.updated_at),
        time_text(record.last_touched_at),
        json_text(record.spec),
        json_text(record.runtime),
        json_text(record.stats),
        json_text(record.workspace) if record.workspace is not None else None,
    ]


def _record(row: Row) -> VMRecord:
    text = [str(value) if value is not None else "" for value in row]
    of = f"VM {text[1]}"
    try:
        state = VMState(text[3])
        created_at, updated_at, last_touched_at = (text_time(value) for value in text[6:9])
    except ValueError as error:
        raise StoreError(
            ErrorCode.STORE_ERROR, f"the database's entry of {of} is damaged: {error}"
        ) from error
    return VMRecord(
        id=text[0],
        name=text[1],
        image_id=text[2],
        state=state,
        auto_remove=bool(row[4]),
        init=text[5],
        created_at=created_at,
        updated_at=updated_at,
        last_touched_at=last_touched_at,
        spec=json_part(text[9], VMSpec, of=of),
        runtime=json_part(text[10], VMRuntime, of=of),
        stats=json_part(text[11], VMStats, of=of),
        workspace=json_part(text[12], Workspace, of=of) if row[12] is not None else None,
    )


def _execute(
    connection: sqlite3.Connection, sql: str, values: list[str | int | None], *, record: VMRecord
) -> int:
    """Rows changed; a broken constraint in words."""
    try:
        return connection.execute(sql, values).rowcount
    except sqlite3.IntegrityError as error:
        if "vms.name" in str(error):
            raise StoreError(
                ErrorCode.ALREADY_EXISTS,
                f"a VM named {record.name} exists already",
                hint=f"choose another name, or: banger vm delete {record.name}",
            ) from error
        if "vms_guest_ip" in str(error):
            raise StoreError(
                ErrorCode.ALREADY_EXISTS, f"the address {record.runtime.guest_ip} is another VM's already"
            ) from error
        if "vms.id" in str(error):
            raise StoreError(ErrorCode.ALREADY_EXISTS, f"the VM {record.id[:12]} exists already") from error
        if error.sqlite_errorname == "SQLITE_CONSTRAINT_FOREIGNKEY":
            raise StoreError(
                ErrorCode.NOT_FOUND,
                f"the image {record.image_id[:12]} of {record.name} is not there any more",
            ) from error
        raise
