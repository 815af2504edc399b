"""The table of images: what an image is; its files are in the images folder (image/ owns them).

Used by image/ alone. Each write is one transaction; an image that a VM has cannot be deleted, and that
is decided in the same transaction.
"""

from __future__ import annotations

import sqlite3

import msgspec

from banger.errors import ErrorCode
from banger.model.records import Image
from banger.store.codec import json_part, json_text
from banger.store.database import Database, Row
from banger.store.errors import StoreError

_SELECT = "SELECT name, record FROM images"


class ImageTable:
    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self) -> list[Image]:
        """All, by name."""
        return [_image(row) for row in self._database.read(f"{_SELECT} ORDER BY name")]

    def get(self, image_id: str) -> Image | None:
        """By full id."""
        rows = self._database.read(f"{_SELECT} WHERE id = ?", (image_id,))
        return _image(rows[0]) if rows else None

    def by_name(self, name: str) -> Image | None:
        rows = self._database.read(f"{_SELECT} WHERE name = ?", (name,))
        return _image(rows[0]) if rows else None

    async def put(self, image: Image) -> None:
        """Insert, or replace the one with its id. ALREADY_EXISTS when another has the name."""
        values = (image.id, image.name, json_text(image))

        def put(connection: sqlite3.Connection) -> None:
            try:
                connection.execute(
                    "INSERT INTO images (id, name, record) VALUES (?, ?, ?)"
                    " ON CONFLICT (id) DO UPDATE SET name = excluded.name, record = excluded.record",
                    values,
                )
            except sqlite3.IntegrityError as error:
                if "images.name" not in str(error):
                    raise
                raise StoreError(
                    ErrorCode.ALREADY_EXISTS,
                    f"an image named {image.name} exists already",
                    hint=f"choose another name, or: banger image delete {image.name}",
                ) from error

        await self._database.write(put)

    async def seeded(self, image_id: str, *, path: str, fingerprint: str) -> None:
        """Note where an image's work seed is and whose key it has; nothing else of it changes. No image,
        no error."""

        def seeded(connection: sqlite3.Connection) -> None:
            rows = connection.execute(f"{_SELECT} WHERE id = ?", (image_id,)).fetchall()
            for row in rows:
                image = msgspec.structs.replace(
                    _image(row), work_seed_path=path, seeded_ssh_public_key_fingerprint=fingerprint
                )
                connection.execute("UPDATE images SET record = ? WHERE id = ?", (json_text(image), image_id))

        await self._database.write(seeded)

    async def delete(self, image_id: str) -> bool:
        """False when there was none. IN_USE, with the VMs' names in data["vms"], when VMs have it."""

        def delete(connection: sqlite3.Connection) -> bool:
            rows = connection.execute("SELECT name FROM vms WHERE image_id = ? ORDER BY name", (image_id,))
            names = [str(name) for (name,) in rows]
            if names:
                shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
                raise StoreError(
                    ErrorCode.IN_USE,
                    f"the image is in use by {len(names)} VM{'s' if len(names) > 1 else ''}",
                    hint=f"delete first: {shown}",
                    data={"vms": names},
                )
            return connection.execute("DELETE FROM images WHERE id = ?", (image_id,)).rowcount > 0

        return await self._database.write(delete)


def _image(row: Row) -> Image:
    return json_part(str(row[1]), Image, of=f"image {row[0]}")
