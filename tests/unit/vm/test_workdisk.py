"""The work disk of a new VM has the key that ssh_key_path names now, whatever the image was seeded with, and
what its user brings along."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from banger.config.settings import FileSync
from banger.guest.ssh import ensure_user_key, fingerprint
from banger.image.service import ImageService
from banger.image.workhome import UsersPart
from banger.image.workseeds import WorkSeeds
from banger.model.records import Image, VMOwner, VMSpec, now
from banger.system.ext4 import E2fsprogs
from banger.system.run import run
from banger.vm import workdisk
from banger.vm.subject import Subject
from banger.vm.workdisk import WorkDisk
from tests.artifacts import MemoryImages

pytestmark = pytest.mark.anyio


class Images:
    def __init__(self, root: Path, store: MemoryImages) -> None:
        self.seeds = WorkSeeds(root, store)

    async def e2fsprogs(self) -> E2fsprogs:
        return E2fsprogs()


def authorized(seed: Path) -> str:
    with tarfile.open(seed) as archive:
        file = archive.extractfile("./.ssh/authorized_keys")
        assert file is not None
        assert archive.extractfile("./.profile") is not None
        return file.read().decode()


async def test_another_key_path_reaches_new_vms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images/a"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "work-seed.tar", "w") as archive:
        info = tarfile.TarInfo("./.profile")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"p"))
    store = MemoryImages()
    await store.put(
        Image(
            id="a",
            name="debian",
            created_at=now(),
            updated_at=now(),
            work_seed_path=str(folder / "work-seed.tar"),
        )
    )
    images = cast(ImageService, Images(tmp_path / "images", store))
    given: list[str] = []

    async def make_work_disk(path: str, *, size_bytes: int, seed: Path, programs: E2fsprogs) -> None:
        assert (path, size_bytes) == (str(tmp_path / "work.ext4"), 64 << 20)
        given.append(authorized(seed))

    monkeypatch.setattr(workdisk, "make_work_disk", make_work_disk)
    subject = SimpleNamespace(
        record=SimpleNamespace(
            runtime=SimpleNamespace(work_disk_path=str(tmp_path / "work.ext4")),
            spec=SimpleNamespace(work_disk_size_bytes=64 << 20, owner=None),
        )
    )
    for name in ("one", "two", "one"):
        path = str(tmp_path / f"ssh/{name}")
        image = store.get("a")
        assert image is not None
        await WorkDisk(images, ssh_key_path=path).prepare_host(cast(Subject, subject), image)
        key = await ensure_user_key(path)
        assert given[-1] == f"{key.public_key}\n"
        image = store.get("a")
        assert image is not None
        assert image.seeded_ssh_public_key_fingerprint == fingerprint(key.public_key)
        said = await run(["ssh-keygen", "-l", "-f", f"{path}.pub"], timeout_s=10)
        assert fingerprint(key.public_key) in said.stdout.decode().split()
    assert given[0] == given[2] != given[1]
    assert fingerprint("") == fingerprint("ssh-ed25519 ?") == ""


async def test_the_users_part_is_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = SimpleNamespace(
        seeds=SimpleNamespace(ensure=AsyncReturn(tmp_path / "seed")), e2fsprogs=AsyncReturn(1)
    )
    parts: list[UsersPart] = []

    async def make_users_disk(path: str, *, part: UsersPart, **_more: object) -> tuple[str, ...]:
        parts.append(part)
        Path(path).write_bytes(bytes(64))
        return ("file_sync entry 1: '~/a' is not there: skipped",)

    monkeypatch.setattr(workdisk, "make_users_disk", make_users_disk)
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = VMSpec(work_disk_size_bytes=64, owner=VMOwner(uid=0, git_name="Ann"))
    record = SimpleNamespace(
        id="1", runtime=SimpleNamespace(work_disk_path=str(tmp_path / "work.ext4")), spec=spec
    )
    subject = cast(Subject, SimpleNamespace(id="1", name="web", record=record))
    sync = (FileSync(host="~/a", guest="~/a"),)
    disk = WorkDisk(cast(ImageService, images), ssh_key_path=str(tmp_path / "key"), file_sync=sync)
    image = Image(id="a", name="debian", created_at=now(), updated_at=now())

    await disk.prepare_host(subject, image)
    assert (parts[0].sync, parts[0].git_name, parts[0].host.path) == (sync, "Ann", str(tmp_path))
    assert "web: file_sync entry 1" in caplog.text
    assert disk.warnings(subject.record) == ("file_sync entry 1: '~/a' is not there: skipped",)
    assert disk.warnings(subject.record) == ()
    await disk.prepare_host(subject, image)
    assert len(parts) == 1


class AsyncReturn:
    """An async function that gives what it was told to."""

    def __init__(self, value: object) -> None:
        self._value = value

    async def __call__(self, *_args: object, **_more: object) -> object:
        return self._value
