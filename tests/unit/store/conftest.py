"""A database in a folder of its own, closed after the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from banger.store.database import Database


@pytest.fixture
def database_path(tmp_path: Path) -> str:
    return str(tmp_path / "banger.db")


@pytest.fixture
async def database(anyio_backend: str, database_path: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_path)
    yield opened
    await opened.close()
