"""The cache of blobs: who holds what, and what a prune takes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.image.oci import blobs
from banger.image.oci.blobs import BlobCache, Part
from tests.fakes.registry import digest_of, noise

pytestmark = pytest.mark.anyio


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "cache" / "blobs")


async def test_a_blob_is_kept_checked_and_found(cache: BlobCache) -> None:
    data = noise(3 << 20)
    with cache.lease() as lease:
        assert await lease.find(digest_of(data)) is None
        path = await lease.put(digest_of(data), data)
        assert path.read_bytes() == data
    with cache.lease() as lease:
        assert await lease.find(digest_of(data)) == path
        assert await lease.read(digest_of(data), limit=4 << 20) == data
        with pytest.raises(BangerError, match="larger than"):
            await lease.read(digest_of(data), limit=1 << 20)
    assert cache.root.stat().st_mode & 0o77 == 0


@pytest.mark.parametrize("spoil", [b"", b"x" * 100, b"short"])
async def test_a_spoilt_file_is_no_blob(cache: BlobCache, spoil: bytes) -> None:
    data = b"y" * 100
    with cache.lease() as lease:
        path = await lease.put(digest_of(data), data)
    path.write_bytes(spoil)
    with cache.lease() as lease:
        assert await lease.find(digest_of(data), size=100) is None
        assert not path.exists()
        assert (await lease.put(digest_of(data), data)).read_bytes() == data


async def test_wrong_content_is_refused_and_leaves_nothing(cache: BlobCache) -> None:
    with cache.lease() as lease:
        with pytest.raises(BangerError, match="is something else") as caught:
            await lease.put(digest_of(b"this"), b"that")
        assert caught.value.code is ErrorCode.IMAGE_INVALID

    assert list(cache.path(digest_of(b"this")).parent.iterdir()) == []


async def test_what_has_no_bytes(cache: BlobCache) -> None:
    with cache.lease() as lease:
        assert (await lease.put(digest_of(b""), b"")).read_bytes() == b""


@pytest.mark.parametrize(
    "digest", ["", "sha256:..", "sha256:../../x", "md5:" + "a" * 32, "sha256:" + "A" * 64]
)
async def test_no_digest_becomes_a_path(cache: BlobCache, digest: str) -> None:
    with pytest.raises(BangerError, match="no digest"):
        cache.path(digest)


async def test_a_prune_takes_what_nobody_keeps_or_uses(cache: BlobCache) -> None:
    one, two, three = (noise(100_000, seed) for seed in range(3))
    with cache.lease() as lease:
        for data in (one, two, three):
            await lease.put(digest_of(data), data)
    part = Path(f"{cache.path(digest_of(b'left'))}.part")
    part.write_bytes(b"half of it")
    stranger = cache.path(digest_of(one)).with_name("README")
    stranger.write_text("not ours")
    with cache.lease() as lease:
        await lease.find(digest_of(one))
        said = cache.prune({digest_of(two)}, dry_run=True)
        assert set(said.removed) == {digest_of(three), digest_of(b"left")}
        assert said.in_use == (digest_of(one),)
        assert said.freed >= 100_000
        assert cache.path(digest_of(three)).exists()
        assert cache.prune({digest_of(two)}) == said
        assert not cache.path(digest_of(three)).exists()
        assert not part.exists()
        assert cache.path(digest_of(one)).exists()
    assert cache.prune().removed == tuple(sorted([digest_of(one), digest_of(two)]))
    assert stranger.exists()
    assert BlobCache(cache.root / "nowhere").prune().removed == ()


async def test_a_prune_spares_what_is_being_brought(cache: BlobCache) -> None:
    data = noise(1 << 20)
    began, go_on = asyncio.Event(), asyncio.Event()

    async def bring(part: Part) -> None:
        await part.append(data[:1000])
        began.set()
        await go_on.wait()
        await part.append(data[1000:])

    with cache.lease() as lease:
        task = asyncio.create_task(lease.obtain(digest_of(data), size=len(data), bring=bring))
        await began.wait()
        assert cache.prune().in_use == (digest_of(data),)
        go_on.set()
        path = await task
        assert cache.prune().in_use == (digest_of(data),)
        assert path.read_bytes() == data


async def test_who_waits_takes_over_from_who_fails(cache: BlobCache) -> None:
    data = noise(10_000)
    began, told = asyncio.Event(), asyncio.Event()
    found: list[int] = []

    async def fail(part: Part) -> None:
        await part.append(data[:4000])
        began.set()
        await told.wait()
        raise BangerError(ErrorCode.DOWNLOAD_FAILED, "broke")

    async def finish(part: Part) -> None:
        found.append(part.have)
        await part.append(data[part.have :])

    with cache.lease() as first, BlobCache(cache.root).lease() as second:
        failing = asyncio.create_task(first.obtain(digest_of(data), size=len(data), bring=fail))
        await began.wait()
        path = await second.obtain(digest_of(data), size=len(data), bring=finish, waiting=told.set)
        with pytest.raises(BangerError, match="broke"):
            await failing
        assert path.read_bytes() == data
    assert found == [4000], "what the first had brought is not brought again"


async def test_pulls_and_prunes_at_the_same_time(cache: BlobCache) -> None:
    """Whatever a prune does in between, a lease's blob is there until the lease ends."""
    data = [noise(50_000, seed) for seed in range(4)]
    stop = False

    async def prune() -> None:
        while not stop:
            await asyncio.to_thread(cache.prune)

    async def use(turn: int) -> None:
        for step in range(15):
            with BlobCache(cache.root).lease() as lease:
                wanted = data[(turn + step) % len(data)]
                path = await lease.put(digest_of(wanted), wanted)
                await asyncio.sleep(0)
                assert path.read_bytes() == wanted

    pruning = asyncio.create_task(prune())
    await asyncio.gather(*(use(turn) for turn in range(4)))
    stop = True
    await pruning


async def test_leases_leave_no_descriptors(cache: BlobCache) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with cache.lease() as lease:
        for number in range(20):
            data = str(number).encode()
            await lease.put(digest_of(data), data)
            await asyncio.gather(lease.find(digest_of(data)), lease.find(digest_of(data)))
        assert len(os.listdir("/proc/self/fd")) == before + 20
    assert len(os.listdir("/proc/self/fd")) == before


async def test_one_waits_for_another_only_so_long(cache: BlobCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "LOCK_WAIT_S", 0.2)
    began = asyncio.Event()

    async def hang(part: Part) -> None:
        began.set()
        await asyncio.sleep(30)

    with cache.lease() as lease:
        hanging = asyncio.create_task(lease.obtain(digest_of(b"x"), size=1, bring=hang))
        await began.wait()
        with BlobCache(cache.root).lease() as other, pytest.raises(BangerError) as caught:
            await other.put(digest_of(b"x"), b"x")
        assert caught.value.code is ErrorCode.BUSY
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
