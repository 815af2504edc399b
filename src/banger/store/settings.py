"""Small texts by key that must outlive the daemon: above all the host settings that banger changed
(`sysctl/net.ipv4.ip_forward` = `0`), so that what was can be put back.

Used by whoever changes such a thing, who writes the old value **before** changing it. Not the
user's configuration: that is config.toml.
"""

from __future__ import annotations

import sqlite3

from banger.store.database import Database


class SettingTable:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, key: str) -> str | None:
        rows = self._database.read("SELECT value FROM settings WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def items(self, prefix: str = "") -> dict[str, str]:
        """All whose key begins with `prefix`, by key."""
        rows = self._database.read(
            "SELECT key, value FROM settings WHERE substr(key, 1, ?) = ? ORDER BY key", (len(prefix), prefix)
        )
        return {str(key): str(value) for key, value in rows}

    async def put(self, key: str, value: str) -> None:
        def put(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO settings (key, value) VALUES (?, ?)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )

        await self._database.write(put)

    async def put_new(self, key: str, value: str) -> str:
        """Write it unless the key is there; the value that is there now. So the first "before" is kept."""

        def put(connection: sqlite3.Connection) -> str:
            connection.execute(
                "INSERT INTO settings (key, value) VALUES (?, ?) ON CONFLICT (key) DO NOTHING", (key, value)
            )
            return str(connection.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()[0])

        return await self._database.write(put)

    async def delete(self, key: str) -> bool:
        """False when there was none."""

        def delete(connection: sqlite3.Connection) -> bool:
            return connection.execute("DELETE FROM settings WHERE key = ?", (key,)).rowcount > 0

        return await self._database.write(delete)
