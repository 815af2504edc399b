"""A signed archive on loopback for this room's tests."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.capabilities import demand
from tests.fakes.debian_archive import FakeArchive, SigningKey


@pytest.fixture(scope="session")
def signing_key() -> Iterator[SigningKey]:
    demand("gpg")
    # not below pytest's own folder: gpg-agent's socket has 107 bytes for its path
    with tempfile.TemporaryDirectory(prefix="gpg-") as folder:
        key = SigningKey(Path(folder, "home"))
        try:
            yield key
        finally:
            key.close()


@pytest.fixture
async def archive(signing_key: SigningKey, anyio_backend: str) -> AsyncIterator[FakeArchive]:
    fake = FakeArchive(signing_key)
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()
