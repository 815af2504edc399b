"""The database: one file, one process, one writer.

Opened by daemon/compose.py and handed to the tables (vms, images, settings), which are all that others
see. Reads are synchronous, on a connection of their own, in the event loop's thread: microseconds, and WAL
never makes them wait for the writer. Writes run one after the other in one thread, each in its own
BEGIN IMMEDIATE transaction. After a crash (of the process or the machine) every write that had been
awaited is there and no write is there in part; SQLite replays its -wal at the next open. What only the kernel
knows (processes, taps, loops) is never in here.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from banger.errors import ErrorCode
from banger.store.errors import StoreError, damaged, explain
from banger.store.migrations import MIGRATIONS, Migration, migrate

T = TypeVar("T")
Parameters = Sequence[str | int | None]
Row = tuple[str | int | None, ...]

_MAGIC = b"SQLite format 3\0"
BUSY_TIMEOUT_MS = 5000
"""For a lock of another program's (a shell that looks into the file): nobody of ours competes."""


class Database:
    """Use `Database.open`; `close` when done. Reads belong to the thread of the event loop."""

    def __init__(self, path: str, *, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self.path = path
        self._writer = writer
        self._reader = reader
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-writer")
        self._closed = False

    @classmethod
    async def open(cls, path: str, *, migrations: Sequence[Migration] = MIGRATIONS) -> Database:
        """Make or migrate the database.

        The folder is there (config.instance makes it), and the caller holds the daemon's lock on it: that
        is what keeps a second process out. StoreError: NO_SPACE, or STORE_ERROR when the file is damaged,
        newer, another program's or not writable.
        """
        opening = asyncio.ensure_future(asyncio.to_thread(cls._open, path, migrations))
        try:
            return await _settle(opening)
        except asyncio.CancelledError:
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().close()
            raise

    @classmethod
    def _open(cls, path: str, migrations: Sequence[Migration]) -> Database:
        """Blocking."""
        opened: list[sqlite3.Connection] = []
        try:
            _make_file(path)
            writer = _connect(path)
            opened.append(writer)
            migrate(writer, path, migrations=migrations)
            writer.execute("PRAGMA journal_mode = WAL")
            reader = _connect(path)
            opened.append(reader)
            reader.execute("PRAGMA query_only = ON")
            return cls(path, writer=writer, reader=reader)
        except BaseException as error:
            for connection in opened:
                connection.close()
            if isinstance(error, sqlite3.Error | OSError):
                raise explain(error, path) from error
            raise

    def read(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """All rows. Sees every write that has been awaited."""
        self._refuse_closed()
        try:
            rows: list[Row] = self._reader.execute(sql, parameters).fetchall()
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise explain(error, self.path) from error
        return rows

    async def write(self, change: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run `change` in the writer's thread as one transaction, which is undone when it raises.

        durable: on disk (fsync) before this returns; False spares that for what may be lost in a power
        cut (statistics), and is still all or nothing. A cancelled write is waited for, milliseconds, so
        that afterwards it has been done or has failed, and nothing is still to come.
        """
        self._refuse_closed()
        loop = asyncio.get_running_loop()
        return await _settle(loop.run_in_executor(self._thread, self._transact, change, durable))

    async def close(self) -> None:
        """Wait for the writes that are under way, fold the -wal into the database."""
        if self._closed:
            return
        self._closed = True
        await _settle(asyncio.ensure_future(asyncio.to_thread(self._close)))

    def _close(self) -> None:
        """Blocking."""
        self._thread.shutdown(wait=True)
        self._reader.close()
        self._writer.close()

    def _transact(self, change: Callable[[sqlite3.Connection], T], durable: bool) -> T:
        """In the writer's thread."""
        connection = self._writer
        try:
            if not durable:
                connection.execute("PRAGMA synchronous = NORMAL")
            try:
                connection.execute("BEGIN IMMEDIATE")
                result = change(connection)
                connection.execute("COMMIT")
            finally:
                # some errors end the transaction by themselves, a full disk may or may not
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if not durable:
                    connection.execute("PRAGMA synchronous = FULL")
        except (sqlite3.Error, OSError, UnicodeEncodeError) as error:
            raise explain(error, self.path) from error
        return result

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreError(ErrorCode.STORE_ERROR, f"the database {self.path} is closed")


def _make_file(path: str) -> None:
    """The empty file, 0600: SQLite would make it with the umask's mode, and gives -wal and -shm its mode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        start = os.pread(descriptor, len(_MAGIC), 0)
    finally:
        os.close(descriptor)
    if start not in (b"", _MAGIC):  # SQLite takes a file of a few bytes for an empty database
        raise damaged(path, f"it begins with {start!r}")


def _connect(path: str) -> sqlite3.Connection:
    # opened in one thread and used in another, but never in two at once
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


async def _settle(future: asyncio.Future[T]) -> T:
    """The future's result. A cancellation is raised only when the future has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # taken notice of
        raise cancelled
    return future.result()
