"""The chain from a signature to a .deb, on a real archive that is small, signed and can lie."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.image import archive as archive_module
from banger.image.archive import Archive
from banger.model.progress import ProgressEvent
from tests.fakes.debian_archive import Entry, FakeArchive, SigningKey, make_deb

pytestmark = pytest.mark.anyio


def open_archive(fake: FakeArchive, folder: Path) -> AbstractAsyncContextManager[Archive]:
    return Archive.open(folder / "downloads", mirror=fake.base, keyring=fake.key.keyring)


def hello(fake: FakeArchive, *, size: int = 3 << 20) -> str:
    """A package of about `size` bytes that does not compress."""
    content = random.Random(size).randbytes(size)
    path = fake.add_deb(
        "hello", make_deb([Entry("./usr/bin/hello", content)], compression="none"), suite="bookworm"
    )
    fake.publish("bookworm")
    return path


async def fetch(fake: FakeArchive, folder: Path, events: list[ProgressEvent] | None = None) -> Path:
    async with open_archive(fake, folder) as archive:
        package = await archive.find("hello", suite="bookworm", architecture="amd64")
        return await archive.download(package, progress=(events if events is not None else []).append)


async def test_package_arrives_checked_and_is_kept(archive: FakeArchive, tmp_path: Path) -> None:
    path = hello(archive)
    events: list[ProgressEvent] = []
    file = await fetch(archive, tmp_path, events)
    assert file.read_bytes() == archive.files[path]
    assert file.name == hashlib.sha256(archive.files[path]).hexdigest()
    sizes = [event.current for event in events]
    assert sizes[0] == 0
    assert sizes[-1] == len(archive.files[path]) == events[-1].total
    archive.requests.clear()
    assert await fetch(archive, tmp_path) == file
    # the release file is asked for each time; index and package come from the cache
    assert [asked for asked, _ in archive.requests] == ["dists/bookworm/InRelease"]


@pytest.mark.parametrize("compression", ["xz", "gzip"])
async def test_index_compressions(archive: FakeArchive, tmp_path: Path, compression: str) -> None:
    archive.add_deb("hello", make_deb([]), suite="bookworm")
    archive.publish("bookworm", compression=compression)
    async with open_archive(archive, tmp_path) as opened:
        assert (await opened.find("hello", suite="bookworm", architecture="amd64")).version == "1.0-1"


async def test_newest_version_and_exact_version(archive: FakeArchive, tmp_path: Path) -> None:
    for version in ("1.0-9", "1.0-10", "1.0-10~rc1"):
        archive.add_deb(
            "hello", make_deb([Entry("./v", version.encode())]), suite="bookworm", version=version
        )
    archive.publish("bookworm")
    async with open_archive(archive, tmp_path) as opened:
        assert (await opened.find("hello", suite="bookworm", architecture="amd64")).version == "1.0-10"
        exact = await opened.find("hello", suite="bookworm", architecture="amd64", version="1.0-9")
        assert exact.version == "1.0-9"
        with pytest.raises(BangerError) as caught:
            await opened.find("hell", suite="bookworm", architecture="amd64")
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_unsigned_release_is_refused(archive: FakeArchive, tmp_path: Path) -> None:
    hello(archive)
    archive.files["dists/bookworm/InRelease"] = b"Suite: bookworm\nSHA256:\n"
    with pytest.raises(BangerError, match="not one signed message") as caught:
        await fetch(archive, tmp_path)
    assert caught.value.code is ErrorCode.IMAGE_INVALID


async def test_changed_release_is_refused(archive: FakeArchive, tmp_path: Path) -> None:
    hello(archive)
    signed = archive.files["dists/bookworm/InRelease"]
    archive.files["dists/bookworm/InRelease"] = signed.replace(b"Origin: Debian", b"Origin: Debiam")
    with pytest.raises(BangerError, match="not signed by a key") as caught:
        await fetch(archive, tmp_path)
    assert caught.value.code is ErrorCode.IMAGE_INVALID
    assert not [request for request in archive.requests if "Packages" in request[0]]


@pytest.mark.parametrize("where", ["before", "after", "twice"])
async def test_text_around_the_signed_block_is_refused(
    archive: FakeArchive, tmp_path: Path, where: str
) -> None:
    hello(archive)
    signed = archive.files["dists/bookworm/InRelease"]
    archive.files["dists/bookworm/InRelease"] = {
        "before": b"SHA256:\n x\n" + signed,
        "after": signed + b"SHA256:\n x\n",
        "twice": signed + signed,
    }[where]
    with pytest.raises(BangerError, match="not one signed message"):
        await fetch(archive, tmp_path)


async def test_another_key_is_refused(archive: FakeArchive, tmp_path: Path) -> None:
    hello(archive)
    empty = tmp_path / "other.gpg"
    empty.write_bytes(b"")
    with pytest.raises(BangerError, match="not signed by a key"):
        async with Archive.open(tmp_path / "d", mirror=archive.base, keyring=empty) as opened:
            await opened.find("hello", suite="bookworm", architecture="amd64")


async def test_release_of_another_suite_is_refused(archive: FakeArchive, tmp_path: Path) -> None:
    hello(archive)
    archive.files["dists/forky/InRelease"] = archive.files["dists/bookworm/InRelease"]
    async with open_archive(archive, tmp_path) as opened:
        with pytest.raises(BangerError, match="signed, but for bookworm"):
            await opened.find("hello", suite="forky", architecture="amd64")


@pytest.mark.parametrize(("days", "refused"), [(-1, False), (1, False), (200, True)])
async def test_valid_until(archive: FakeArchive, tmp_path: Path, days: int, refused: bool) -> None:
    archive.add_deb("hello", make_deb([]), suite="bookworm")
    until = format_datetime(datetime.now(UTC) - timedelta(days=days), usegmt=True)
    archive.publish("bookworm", fields=f"Valid-Until: {until}\n")
    if refused:
        with pytest.raises(BangerError, match="out of date for 200 days"):
            await fetch(archive, tmp_path)
    else:
        await fetch(archive, tmp_path)


async def test_changed_index_is_refused(archive: FakeArchive, tmp_path: Path) -> None:
    hello(archive)
    for path in [path for path in archive.files if "Packages" in path or "by-hash" in path]:
        archive.faults[path] = "corrupt"
    with pytest.raises(BangerError, match="not the file that the signed index names") as caught:
        await fetch(archive, tmp_path)
    assert caught.value.code is ErrorCode.IMAGE_INVALID


async def test_mirror_without_by_hash(archive: FakeArchive, tmp_path: Path) -> None:
    hello(archive)
    for path in [path for path in archive.files if "by-hash" in path]:
        archive.faults[path] = "404"
    assert (await fetch(archive, tmp_path)).is_file()


async def test_changed_package_is_refused_and_leaves_nothing(archive: FakeArchive, tmp_path: Path) -> None:
    path = hello(archive)
    archive.faults[path] = "corrupt"
    with pytest.raises(BangerError, match="not the file that the signed index names"):
        await fetch(archive, tmp_path)
    digest = hashlib.sha256(archive.files[path]).hexdigest()
    assert not [file for file in (tmp_path / "downloads").iterdir() if file.name.startswith(digest)]


async def test_broken_connection_is_continued(archive: FakeArchive, tmp_path: Path) -> None:
    path = hello(archive)
    archive.faults[path] = "truncate"
    file = await fetch(archive, tmp_path)
    assert file.read_bytes() == archive.files[path]
    ranges = [asked for requested, asked in archive.requests if requested == path]
    assert ranges[0] == ""
    assert ranges[1].startswith("bytes=")
    assert ranges[1] != "bytes=0-"


async def test_part_of_an_earlier_run_is_continued(archive: FakeArchive, tmp_path: Path) -> None:
    path = hello(archive)
    content = archive.files[path]
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / f"{hashlib.sha256(content).hexdigest()}.part").write_bytes(content[:1000])
    assert (await fetch(archive, tmp_path)).read_bytes() == content
    assert (path, "bytes=1000-") in archive.requests


@pytest.mark.parametrize("fault", ["", "no-ranges"])
async def test_worthless_part_is_replaced(archive: FakeArchive, tmp_path: Path, fault: str) -> None:
    path = hello(archive)
    content = archive.files[path]
    archive.faults[path] = fault
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / f"{hashlib.sha256(content).hexdigest()}.part").write_bytes(b"garbage of another program")
    assert (await fetch(archive, tmp_path)).read_bytes() == content


async def test_too_much_is_refused(archive: FakeArchive, tmp_path: Path) -> None:
    path = hello(archive, size=1 << 16)
    archive.faults[path] = "endless"
    with pytest.raises(BangerError, match="larger than"):
        await fetch(archive, tmp_path)
    assert sum(file.stat().st_size for file in (tmp_path / "downloads").iterdir()) < 1 << 20


async def test_too_large_release_is_refused(
    archive: FakeArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hello(archive)
    monkeypatch.setattr(archive_module, "MAX_INRELEASE", 100)
    with pytest.raises(BangerError, match="larger than"):
        await fetch(archive, tmp_path)


async def test_server_that_breaks_off_is_a_clear_error(archive: FakeArchive, tmp_path: Path) -> None:
    path = hello(archive)
    archive.faults[path] = "break"
    with pytest.raises(BangerError, match="cannot download") as caught:
        await fetch(archive, tmp_path)
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
    assert caught.value.hint


async def test_missing_package_file(archive: FakeArchive, tmp_path: Path) -> None:
    path = hello(archive)
    archive.faults[path] = "404"
    with pytest.raises(BangerError, match="its own index names") as caught:
        await fetch(archive, tmp_path)
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED


async def test_missing_suite_and_dead_mirror(archive: FakeArchive, tmp_path: Path) -> None:
    async with open_archive(archive, tmp_path) as opened:
        with pytest.raises(BangerError, match="has no suite trixie") as caught:
            await opened.find("hello", suite="trixie", architecture="amd64")
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
    await archive.stop()
    with pytest.raises(BangerError, match="cannot download") as caught:
        await fetch(archive, tmp_path)
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED


@pytest.mark.parametrize("filename", ["../../etc/passwd", "pool/../../x", "/etc/passwd", "pool/a b"])
async def test_strange_paths_in_the_index_are_refused(
    archive: FakeArchive, tmp_path: Path, filename: str
) -> None:
    archive.add_deb("hello", make_deb([]), suite="bookworm", filename=filename)
    archive.publish("bookworm")
    with pytest.raises(BangerError, match="strange path"):
        await fetch(archive, tmp_path)


async def test_two_at_once_download_once(archive: FakeArchive, tmp_path: Path) -> None:
    path = hello(archive)
    first, second = await asyncio.gather(fetch(archive, tmp_path), fetch(archive, tmp_path))
    assert first == second
    assert len([requested for requested, _ in archive.requests if requested == path]) == 1


async def test_missing_keyring_says_what_to_install(tmp_path: Path, signing_key: SigningKey) -> None:
    with pytest.raises(BangerError) as caught:
        async with Archive.open(
            tmp_path, mirror="http://mirror.invalid/debian", keyring=tmp_path / "none.gpg"
        ):
            pass
    assert caught.value.code is ErrorCode.HOST_UNSUITABLE
    assert "debian-archive-keyring" in (caught.value.hint or "")
