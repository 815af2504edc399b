"""The schema, as numbered migrations, and how a database is brought from any older one to today's.

Only store/database.py uses it. `PRAGMA user_version` is the number of the last migration; each is one
transaction with that number inside, so a crash leaves the schema before or after it, never between.
Before the first migration of an existing database it is copied to banger.db.v<N>.bak (N: the old number).
A migration that was released is never changed: COMPATIBILITY.md, Database.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from banger.errors import ErrorCode
from banger.store.errors import StoreError, damaged, explain

APPLICATION_ID = 0x62616E67  # "bang": file(1) and we tell our database from another program's


class Migration(NamedTuple):
    """number counts from 1 without gaps; statements are single SQL statements, run in order."""

    number: int
    purpose: str
    statements: tuple[str, ...]


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        1,
        "images, VMs, small settings",
        (
            """
            CREATE TABLE images (
              id TEXT PRIMARY KEY NOT NULL,
              name TEXT NOT NULL UNIQUE,
              record TEXT NOT NULL CHECK (json_valid(record))
            ) STRICT
            """,
            """
            CREATE TABLE vms (
              id TEXT PRIMARY KEY NOT NULL,
              name TEXT NOT NULL UNIQUE,
              image_id TEXT NOT NULL REFERENCES images (id),
              state TEXT NOT NULL,
              auto_remove INTEGER NOT NULL DEFAULT 0,
              init TEXT NOT NULL DEFAULT '',
              created_at TEXT NOT NULL,
              updated_at TEXT NOT NULL,
              last_touched_at TEXT NOT NULL,
              spec TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(spec)),
              runtime TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(runtime)),
              stats TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(stats)),
              workspace TEXT CHECK (workspace IS NULL OR json_valid(workspace))
            ) STRICT
            """,
            # an address is given once: two reservations that overlap must not both come through
            "CREATE UNIQUE INDEX vms_guest_ip ON vms (json_extract(runtime, '$.guest_ip'))",
            "CREATE INDEX vms_image_id ON vms (image_id)",
            """
            CREATE TABLE settings (
              key TEXT PRIMARY KEY NOT NULL,
              value TEXT NOT NULL
            ) STRICT
            """,
        ),
    ),
)


def migrate(
    connection: sqlite3.Connection, path: str, *, migrations: Sequence[Migration] = MIGRATIONS
) -> tuple[int, int]:
    """Bring the database to the last migration; (number before, number now).

    The connection is in autocommit mode. StoreError for a newer schema or another program's
    database, neither of which is touched, and for a damaged one.
    """
    newest = migrations[-1].number
    try:
        before = _version(connection)
        _refuse_foreign(connection, path, before)
        if before > newest:
            raise StoreError(
                ErrorCode.STORE_ERROR,
                f"the database {path} is of a newer banger (schema {before}, this one knows {newest})",
                hint=f"use the newer banger, or put its backup banger.db.v{newest}.bak in its place",
                data={"schema": before, "known": newest},
            )
        # before anything is written: a damaged database must not replace a good backup
        check = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if check != "ok":
            raise damaged(path, str(check))
        if 0 < before < newest:
            back_up(connection, f"{path}.v{before}.bak")
        for migration in migrations:
            if migration.number > before:
                _apply(connection, migration)
    except (sqlite3.Error, OSError) as error:
        raise explain(error, path) from error
    return before, newest


def back_up(connection: sqlite3.Connection, target: str) -> None:
    """A whole copy at `target`, mode 0600, there completely or not at all."""
    staging = f"{target}.tmp"
    os.close(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    copy = sqlite3.connect(staging, isolation_level=None)
    try:
        connection.backup(copy)
    finally:
        copy.close()
    descriptor = os.open(staging, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(staging, target)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _refuse_foreign(connection: sqlite3.Connection, path: str, version: int) -> None:
    mark = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
    if mark == APPLICATION_ID or (mark == 0 and version == 0 and tables == 0):
        return
    raise StoreError(
        ErrorCode.STORE_ERROR,
        f"{path} is another program's database",
        hint="move it away: banger makes its own",
    )


def _apply(connection: sqlite3.Connection, migration: Migration) -> None:
    # rebuilding a table that others refer to is only possible with the checks off, and a PRAGMA in a
    # transaction is ignored; what the migration left is checked before it is committed
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in migration.statements:
                connection.execute(statement)
            broken = connection.execute("PRAGMA foreign_key_check").fetchall()
            if broken:
                raise StoreError(
                    ErrorCode.STORE_ERROR,
                    f"migration {migration.number} of the database would break {len(broken)} references",
                    details=repr(broken[:10]),
                )
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {migration.number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    finally:
        connection.execute("PRAGMA foreign_keys = ON")
