"""The database: one writer, all or nothing, and plain words for what is wrong with it."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import banger.errors
from banger.errors import BangerError, ErrorCode
from banger.store.database import Database
from banger.store.settings import SettingTable

pytestmark = pytest.mark.anyio


async def test_files_are_private_whatever_the_umask(database_path: str) -> None:
    folder = Path(database_path).parent
    before = os.umask(0)
    database = await Database.open(database_path)
    try:
        await SettingTable(database).put("a", "b")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    await database.close()
    assert modes == dict.fromkeys(("banger.db", "banger.db-shm", "banger.db-wal"), 0o600)
    assert sorted(path.name for path in folder.iterdir()) == ["banger.db"]


async def test_the_pragmas_that_durability_rests_on(database: Database) -> None:
    def pragmas(connection: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await database.write(pragmas) == ["wal", 2, 1]
    await database.write(lambda connection: None, durable=False)
    assert await database.write(pragmas) == ["wal", 2, 1]
    tables = database.read("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    assert tables
    assert all(str(sql).rstrip().endswith("STRICT") for (sql,) in tables)


async def test_closing_may_be_repeated_and_ends_all_use(database_path: str) -> None:
    first = await Database.open(database_path)
    await first.close()
    await first.close()
    database = await Database.open(database_path)
    await database.close()
    with pytest.raises(BangerError, match="is closed"):
        database.read("SELECT 1")
    with pytest.raises(BangerError, match="is closed"):
        await database.write(lambda connection: None)


async def test_a_write_is_seen_by_the_next_read(database: Database) -> None:
    settings = SettingTable(database)
    for number in range(20):
        await settings.put("key", str(number))
        assert settings.get("key") == str(number)


async def test_a_write_that_raises_leaves_nothing(database: Database) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO settings VALUES ('a', 'b')")
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        await database.write(fail)
    settings = SettingTable(database)
    assert settings.get("a") is None
    await settings.put("a", "c")
    assert settings.get("a") == "c"


async def test_writes_run_one_after_the_other_off_the_loops_thread(database: Database) -> None:
    running = 0
    most = 0
    threads: set[int] = set()

    def change(connection: sqlite3.Connection) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        threads.add(threading.get_ident())
        connection.execute("INSERT INTO settings VALUES (?, 'x')", (random.random().hex(),))
        running -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(database.write(change))
    assert most == 1
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    assert database.read("SELECT count(*) FROM settings") == [(50,)]


async def test_a_cancelled_write_has_ended_when_the_cancellation_arrives(database: Database) -> None:
    entered = threading.Event()
    go_on = threading.Event()

    def change(connection: sqlite3.Connection) -> None:
        entered.set()
        assert go_on.wait(50)
        connection.execute("INSERT INTO settings VALUES ('slow', 'x')")

    task = asyncio.create_task(database.write(change))
    await asyncio.to_thread(entered.wait, 50)
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert SettingTable(database).get("slow") == "x"


async def test_a_cancelled_open_leaves_nothing_open(database_path: str) -> None:
    task = asyncio.create_task(Database.open(database_path))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await (await Database.open(database_path)).close()


async def test_the_reading_connection_cannot_write(database: Database) -> None:
    with pytest.raises(BangerError) as caught:
        database.read("INSERT INTO settings VALUES ('a', 'b')")
    assert caught.value.code is ErrorCode.STORE_ERROR


async def test_a_full_disk_is_no_space_and_the_store_goes_on(database: Database) -> None:
    def shrink(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    await database.write(shrink)
    settings = SettingTable(database)
    with pytest.raises(BangerError) as caught:
        await settings.put("big", "x" * 100_000)
    assert caught.value.code is ErrorCode.NO_SPACE
    assert caught.value.hint
    assert settings.get("big") is None
    await settings.put("small", "y")
    assert settings.get("small") == "y"


async def test_another_programs_lock_is_named(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await database.write(lambda connection: connection.execute("SELECT 1"))
    await database.write(_short_wait)
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(BangerError, match="locked by another program") as caught:
            await SettingTable(database).put("a", "b")
        assert caught.value.code is ErrorCode.STORE_ERROR
    finally:
        other.close()
    await SettingTable(database).put("a", "b")


def _short_wait(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA busy_timeout = 50")


async def test_text_that_is_not_utf8_is_refused(database: Database) -> None:
    with pytest.raises(BangerError, match="not UTF-8") as caught:
        await SettingTable(database).put("a", "\udcff")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "content", [b"not a database at all, but a long enough text" * 100, b"x", b"SQLite format 3\0"]
)
async def test_a_file_that_is_no_database_is_refused_and_kept(database_path: str, content: bytes) -> None:
    Path(database_path).write_bytes(content)
    with pytest.raises(BangerError, match="damaged, or not a database") as caught:
        await Database.open(database_path)
    assert caught.value.code is ErrorCode.STORE_ERROR
    assert caught.value.hint
    assert Path(database_path).read_bytes() == content


async def test_a_damaged_database_is_refused_in_plain_words(database_path: str) -> None:
    database = await Database.open(database_path)
    for number in range(200):
        await SettingTable(database).put(f"key-{number}", "x" * 200)
    await database.close()
    whole = Path(database_path).read_bytes()
    generator = random.Random(1)
    refused = 0
    for _ in range(30):
        broken = bytearray(whole)
        start = generator.randrange(100, len(broken) - 2000)
        broken[start : start + 2000] = generator.randbytes(2000)
        Path(database_path).write_bytes(broken)
        try:
            await (await Database.open(database_path)).close()
        except BangerError as error:
            refused += error.code is ErrorCode.STORE_ERROR
    assert refused > 15  # content alone that changed is no damage that SQLite could see


async def test_a_truncated_database_is_refused(database_path: str) -> None:
    database = await Database.open(database_path)
    await SettingTable(database).put("key", "x" * 20_000)
    await database.close()
    os.truncate(database_path, 8192)
    with pytest.raises(BangerError, match="damaged"):
        await Database.open(database_path)


async def test_a_missing_folder_and_a_symlink_are_plain_errors(tmp_path: Path) -> None:
    with pytest.raises(BangerError, match="No such file") as caught:
        await Database.open(str(tmp_path / "missing" / "banger.db"))
    assert caught.value.code is ErrorCode.STORE_ERROR
    (tmp_path / "banger.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(BangerError) as caught:
        await Database.open(str(tmp_path / "banger.db"))
    assert caught.value.code is ErrorCode.STORE_ERROR
    assert not (tmp_path / "elsewhere.db").exists()


WRITE_UNTIL_KILLED = """
import asyncio, sys
from banger.store.database import Database
from banger.store.settings import SettingTable
async def main():
    settings = SettingTable(await Database.open(sys.argv[1]))
    for number in range(1_000_000):
        await settings.put('number', str(number))
        print(number, flush=True)
asyncio.run(main())
"""


def last_number_before_the_kill(path: str, *, after_s: float) -> int:
    """Start a writer, kill -9 it; the last write that it reported."""
    argv = [sys.executable, "-c", WRITE_UNTIL_KILLED, path]
    environ = {**os.environ, "PYTHONPATH": str(Path(banger.errors.__file__).parents[1])}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "0\n"
            time.sleep(after_s)  # any moment will do
        finally:
            process.kill()
        lines = process.stdout.read().splitlines(keepends=True)
    return int(next((line for line in reversed(lines) if line.endswith("\n")), "0"))


async def test_what_was_awaited_outlives_a_kill(database_path: str) -> None:
    for attempt in range(3):
        said = await asyncio.to_thread(last_number_before_the_kill, database_path, after_s=0.05 * attempt)
        database = await Database.open(database_path)
        stored = SettingTable(database).get("number")
        await database.close()
        assert stored in (str(said), str(said + 1))
