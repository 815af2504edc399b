"""Pulled images: made once for a digest, named, replaced and left whole; on a registry with a memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from banger.errors import BangerError, ErrorCode
from banger.image.kernel import KernelService, link_kernel, write_kernel
from banger.image.oci.auth import Credential
from banger.image.oci.blobs import BlobCache
from banger.image.oci.endpoint import Access
from banger.image.oci.manifest import Layer
from banger.image.oci.reference import parse_reference
from banger.image.ociimage import image_name
from banger.image.pulling import Puller, Wanted
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.model.records import Image, Kernel, now
from banger.system.ext4 import E2fsprogs
from tests.artifacts import MemoryImages
from tests.fakes.registry import FakeRegistry

pytestmark = pytest.mark.anyio

CONFIG = {
    "Entrypoint": ["/go"],
    "Cmd": ["fast"],
    "Env": ["PATH=/bin", "A=b"],
    "WorkingDir": "/srv",
    "User": "7",
}


class Kernels:
    """One kernel."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "modules").mkdir(parents=True)
        self._record = Kernel(
            name="k",
            distro="debian",
            arch="x86_64",
            kernel_version="6.1",
            sha256="0" * 64,
            source="x",
            imported_at=now(),
        )
        write_kernel(folder, b"kernel", record=self._record)

    async def ensure(self, _name: str, _progress: Progress) -> Kernel:
        return self._record

    async def link(self, _name: str, target: Path) -> str:
        return link_kernel(self._folder, target)


class Store(MemoryImages):
    """used: ids that VMs have; fails: the next put does not come through."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[str] = set()
        self.fails = False

    async def put(self, image: Image) -> None:
        if self.fails:
            self.fails = False
            raise OSError("killed")
        await super().put(image)

    async def delete(self, image_id: str) -> bool:
        if image_id in self.used:
            raise BangerError(ErrorCode.IN_USE, "in use")
        return await super().delete(image_id)


class World:
    def __init__(self, home: Path, registry: FakeRegistry) -> None:
        self.root = home / "images"
        self.registry = registry
        self.store = Store()
        self.cache = BlobCache(home / "blobs")
        self.made = 0
        self.fails: BaseException | None = None
        self.puller = Puller(
            self.root,
            cache=self.cache,
            store=self.store,
            kernels=cast(KernelService, Kernels(home / "kernel")),
            programs=self._programs,
            make=self._make,
        )

    async def _programs(self, _progress: Progress) -> E2fsprogs:
        return E2fsprogs()

    async def _make(
        self,
        layers: Sequence[Layer],
        rootfs: Path,
        seed: Path,
        *,
        programs: E2fsprogs,
        size_bytes: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        staging = rootfs.parent
        rootfs.write_bytes(b"".join(layer.path.read_bytes() for layer in layers))
        seed.write_bytes(b"")
        (staging / "root.tar").write_bytes(b"half")
        if self.fails is not None:
            raise self.fails
        (staging / "root.tar").unlink()
        self.made += 1

    async def pull(
        self,
        repository: str = "app",
        *,
        name: str = "",
        kernel: str = "",
        access: Access | None = None,
        progress: Progress = no_progress,
    ) -> Image:
        wanted = Wanted(reference=f"{self.registry.address}/{repository}", name=name, kernel=kernel)
        return await self.puller.pull(wanted, access=access or Access(), progress=progress)

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if not path.name.startswith(".lock-"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    registry = await FakeRegistry().start()
    yield World(tmp_path, registry)
    await registry.stop()


async def test_a_pulled_image_is_whole_and_made_once(world: World) -> None:
    digest = world.registry.image(config=CONFIG)
    image = await world.pull()
    assert (image.name, image.oci_digest, image.oci_pinned) == ("app", digest, digest)
    assert image.oci_reference == f"{world.registry.address}/app:latest"
    assert (image.entrypoint, image.cmd, image.user, image.workdir) == (("/go",), ("fast",), "7", "/srv")
    assert image.env == ("PATH=/bin", "A=b")
    assert sorted(path.name for path in Path(image.artifact_dir).iterdir()) == [
        "image.json",
        "kernel.json",
        "modules",
        "rootfs.ext4",
        "vmlinux",
        "work-seed.tar",
    ]
    world.cache.prune()
    world.registry.requests.clear()
    assert await world.pull() == image == world.store.by_name("app")
    assert [asked.method for asked in world.registry.requests] == ["HEAD"]
    assert world.made == 1
    assert await world.pull(name="app") == image


async def test_size_and_kernel_of_an_image_that_is_here_are_said_to_stay(world: World) -> None:
    world.registry.image()
    await world.pull()
    events: list[ProgressEvent] = []
    await world.pull(progress=events.append, kernel="other")
    assert [event.message for event in events if event.warning] == [
        "app is here already, as it was made: --size and --kernel change nothing"
    ]


async def test_a_tag_that_moved_on_gives_the_name_to_the_new_image(world: World) -> None:
    world.registry.image(layers=[b"1"])
    first = await world.pull()
    world.registry.image(layers=[b"2"])
    second = await world.pull()
    assert world.store.list() == [second]
    assert world.folders() == [second.id] != [first.id]


async def test_an_image_that_vms_have_stays_under_another_name(world: World) -> None:
    world.registry.image(layers=[b"1"])
    first = await world.pull()
    world.store.used.add(first.id)
    world.registry.image(layers=[b"2"])
    second = await world.pull()
    assert {image.id: image.name for image in world.store.list()} == {
        first.id: f"app-{first.id[:12]}",
        second.id: "app",
    }
    assert world.folders() == sorted([first.id, second.id])


async def test_a_name_is_not_taken_from_another_image(world: World) -> None:
    world.registry.image()
    world.registry.image("team/app")
    await world.pull()
    with pytest.raises(BangerError, match="there is an image app already") as caught:
        await world.pull("team/app")
    assert caught.value.code is ErrorCode.ALREADY_EXISTS
    assert (await world.pull("team/app", name="theirs")).name == "theirs"


async def test_an_image_published_just_before_a_crash_is_taken_over(world: World) -> None:
    world.registry.image()
    world.store.fails = True
    with pytest.raises(OSError, match="killed"):
        await world.pull()
    image = await world.pull()
    assert world.made == 1
    assert world.store.list() == [image]
    # the same, where an older one of that name is in the store
    world.registry.image(layers=[b"new"])
    world.store.used.add(image.id)
    world.store.fails = True
    with pytest.raises(OSError, match="killed"):
        await world.pull()
    assert len(world.folders()) == 2
    newer = await world.pull()
    assert world.made == 2
    assert sorted(image.id for image in world.store.list()) == world.folders() == sorted([image.id, newer.id])


@pytest.mark.parametrize("failure", [BangerError(ErrorCode.IMAGE_INVALID, "bad"), KeyboardInterrupt()])
async def test_what_fails_leaves_no_image(world: World, failure: BaseException) -> None:
    world.registry.image()
    world.fails = failure
    with pytest.raises(type(failure)):
        await world.pull()
    assert world.folders() == []
    assert world.store.list() == []
    world.fails = None
    await world.pull()


async def test_a_file_that_is_none_is_refused(world: World, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(BangerError, match="is no file") as caught:
            await world.puller.pull(Wanted(file=str(path)), access=Access(), progress=no_progress)
        assert caught.value.code is ErrorCode.IMAGE_INVALID
    with pytest.raises(BangerError):
        await world.puller.pull(Wanted(file=str(tmp_path / "x")), access=Access(), progress=no_progress)


async def test_secrets_are_written_nowhere(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.registry.auth, world.registry.users = "bearer", {"ann": "hunter2-secret"}
    world.registry.image()
    with pytest.raises(BangerError) as caught:
        await world.pull()
    assert caught.value.code is ErrorCode.PERMISSION_DENIED
    access = Access(
        credentials={world.registry.address: Credential(username="ann", password="hunter2-secret")}
    )
    await world.pull(access=access)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(b"hunter2-secret" in content for content in written)
    assert "hunter2-secret" not in caplog.text + repr(access)


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("alpine", "alpine"),
        ("debian:12", "debian-12"),
        ("localhost:5000/team/My_app".lower(), "my-app"),
        ("example.org/a/b:V1.2_x", "b-v1-2-x"),
        (f"alpine@sha256:{'ab' * 32}", "alpine-abababababab"),
        ("a:" + "x" * 100, "a-" + "x" * 61),
        ("a:__", "a"),
    ],
)
def test_names_come_from_references(reference: str, name: str) -> None:
    assert image_name(parse_reference(reference)) == name
