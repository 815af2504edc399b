"""Migrations: in order, each whole or not at all, with a backup before; a newer schema is left alone."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.store.database import Database
from banger.store.migrations import MIGRATIONS, Migration
from banger.store.settings import SettingTable

pytestmark = pytest.mark.anyio

NEWEST = MIGRATIONS[-1].number
ADD_COLUMN = Migration(
    NEWEST + 1, "a column", ("ALTER TABLE settings ADD COLUMN extra TEXT NOT NULL DEFAULT 'e'",)
)
BROKEN = Migration(
    NEWEST + 2,
    "fails in its second half",
    ("CREATE TABLE half (a TEXT) STRICT", "INSERT INTO missing VALUES (1)"),
)


def look(path: str, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.execute(sql))
    finally:
        connection.close()


async def make(path: str) -> None:
    database = await Database.open(path)
    await SettingTable(database).put("kept", "yes")
    await database.close()


def test_numbers_count_from_one_without_gaps() -> None:
    assert [migration.number for migration in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


async def test_a_new_database_has_the_newest_schema_and_no_backup(database_path: str) -> None:
    await make(database_path)
    assert look(database_path, "PRAGMA user_version") == [(NEWEST,)]
    assert not list(Path(database_path).parent.glob("*.bak*"))


async def test_a_migration_keeps_the_rows_and_leaves_a_backup(database_path: str) -> None:
    await make(database_path)
    database = await Database.open(database_path, migrations=[*MIGRATIONS, ADD_COLUMN])
    assert database.read("SELECT key, value, extra FROM settings") == [("kept", "yes", "e")]
    await database.close()
    backup = Path(f"{database_path}.v{NEWEST}.bak")
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert look(str(backup), "PRAGMA user_version") == [(NEWEST,)]
    assert look(str(backup), "SELECT * FROM settings") == [("kept", "yes")]
    # and the backup is what the older banger can be given
    backup.rename(database_path)
    older = await Database.open(database_path)
    assert SettingTable(older).get("kept") == "yes"
    await older.close()


async def test_a_database_that_was_killed_with_its_log_is_backed_up_whole(database_path: str) -> None:
    await make(database_path)
    connection = sqlite3.connect(database_path, isolation_level=None)
    connection.execute("INSERT INTO settings VALUES ('in the log', 'only')")
    folder = Path(database_path).parent
    copies = {path: path.read_bytes() for path in folder.glob("banger.db*")}
    connection.close()
    for path, content in copies.items():
        path.write_bytes(content)
    assert Path(f"{database_path}-wal").stat().st_size > 0
    await (await Database.open(database_path, migrations=[*MIGRATIONS, ADD_COLUMN])).close()
    backup = f"{database_path}.v{NEWEST}.bak"
    assert look(backup, "SELECT count(*) FROM settings") == [(2,)]


async def test_a_migration_that_fails_leaves_the_schema_before_it(database_path: str) -> None:
    await make(database_path)
    with pytest.raises(BangerError, match="missing") as caught:
        await Database.open(database_path, migrations=[*MIGRATIONS, ADD_COLUMN, BROKEN])
    assert caught.value.code is ErrorCode.STORE_ERROR
    assert look(database_path, "PRAGMA user_version") == [(ADD_COLUMN.number,)]
    assert look(database_path, "SELECT name FROM sqlite_schema WHERE name = 'half'") == []
    # the one before it was whole, and stays
    await (await Database.open(database_path, migrations=[*MIGRATIONS, ADD_COLUMN])).close()


async def test_a_migration_that_breaks_references_is_undone(database_path: str) -> None:
    dangling = Migration(
        NEWEST + 1,
        "a VM without its image",
        (
            "INSERT INTO vms (id, name, image_id, state, created_at, updated_at, last_touched_at)"
            " VALUES ('1', 'a', 'gone', 'stopped', '', '', '')",
        ),
    )
    await make(database_path)
    with pytest.raises(BangerError, match="would break 1 references"):
        await Database.open(database_path, migrations=[*MIGRATIONS, dangling])
    assert look(database_path, "SELECT count(*) FROM vms") == [(0,)]
    assert look(database_path, "PRAGMA user_version") == [(NEWEST,)]


async def test_a_newer_schema_is_refused_in_plain_words_and_not_touched(database_path: str) -> None:
    await (await Database.open(database_path, migrations=[*MIGRATIONS, ADD_COLUMN])).close()
    before = Path(database_path).read_bytes()
    with pytest.raises(BangerError) as caught:
        await Database.open(database_path)
    assert caught.value.code is ErrorCode.STORE_ERROR
    assert "newer banger" in caught.value.brief
    assert f"schema {NEWEST + 1}, this one knows {NEWEST}" in caught.value.brief
    assert caught.value.data == {"schema": NEWEST + 1, "known": NEWEST}
    assert Path(database_path).read_bytes() == before


@pytest.mark.parametrize(
    "sql", ["CREATE TABLE theirs (a)", "PRAGMA user_version = 1", "PRAGMA application_id = 5"]
)
async def test_another_programs_database_is_refused_and_not_touched(database_path: str, sql: str) -> None:
    connection = sqlite3.connect(database_path)
    connection.execute(sql)
    connection.commit()
    connection.close()
    before = Path(database_path).read_bytes()
    with pytest.raises(BangerError, match="another program's database"):
        await Database.open(database_path)
    assert Path(database_path).read_bytes() == before
