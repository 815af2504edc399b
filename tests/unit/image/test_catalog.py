"""The catalog's images: pulled by name, at the digest that the configuration says; and races for a name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import cast

import pytest

from banger.config.paths import resolve_paths
from banger.config.settings import CatalogImage, Settings
from banger.errors import BangerError, ErrorCode
from banger.image import catalog
from banger.image.kernel import KernelService
from banger.image.oci.auth import Credential
from banger.image.oci.manifest import Layer
from banger.image.own import OwnFiles
from banger.image.pulling import Wanted
from banger.image.service import ImageService
from banger.image.tools import ToolService
from banger.local.pulling import request_credentials
from banger.model.progress import Progress, no_progress
from banger.model.records import Image
from banger.system.ext4 import E2fsprogs
from tests.fakes.registry import FakeRegistry
from tests.unit.image.test_own import ext4
from tests.unit.image.test_pulling import Kernels, Store

pytestmark = pytest.mark.anyio


class Named(Store):
    """As the table of images: a name has one image."""

    async def put(self, image: Image) -> None:
        other = self.by_name(image.name)
        if other is not None and other.id != image.id:
            raise BangerError(ErrorCode.ALREADY_EXISTS, f"an image named {image.name} exists already")
        await super().put(image)


class Shop:
    """An ImageService over a registry with a memory; `pins` is what its configuration's catalog has."""

    def __init__(self, home: Path, registry: FakeRegistry) -> None:
        self.registry = registry
        self.made = 0
        self.store = Named()
        self.paths = resolve_paths({"BANGER_HOME": str(home)})
        self.kernels = cast(KernelService, Kernels(home / "a-kernel"))
        (home / "vmlinux").write_bytes(b"\x7fELF")
        self.own = OwnFiles(rootfs=str(ext4(home / "mine.ext4")), kernel=str(home / "vmlinux"))

    def service(self, **pins: str) -> ImageService:
        """A daemon with such a catalog: name=digest, of the registry's repository app."""
        entries = tuple(
            CatalogImage(name=name, reference=f"{self.registry.address}/app:v1@{digest}")
            for name, digest in pins.items()
        )
        return ImageService(
            self.paths,
            Settings(catalog=entries),
            store=self.store,
            kernels=self.kernels,
            tools=ToolService(self.paths, Settings(), find=lambda _name: "/bin/true"),
            make=self.make,
        )

    async def make(
        self,
        layers: Sequence[Layer],
        rootfs: Path,
        seed: Path,
        *,
        programs: E2fsprogs,
        size_bytes: int = 0,
        progress: Progress = no_progress,
        **_more: object,
    ) -> None:
        rootfs.write_bytes(b"".join(layer.path.read_bytes() for layer in layers))
        seed.write_bytes(b"")
        self.made += 1

    async def pull(self, service: ImageService, reference: str, *, name: str = "") -> Image:
        return await service.pull(Wanted(reference=reference, name=name), credentials={})

    def folders(self) -> list[str]:
        """An image's each; an unmanaged one's has its work seed."""
        root = Path(self.paths.images_dir)
        return sorted(path.name for path in root.iterdir() if not path.name.startswith(".lock-"))


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    registry = await FakeRegistry().start()
    yield Shop(tmp_path, registry)
    await registry.stop()


async def test_an_entry_is_pulled_by_its_name_at_its_digest(shop: Shop) -> None:
    registry = shop.registry
    pinned = registry.image(layers=[b"1"])
    registry.image(layers=[b"2"])  # the tag has moved on
    service = shop.service(tools=pinned)
    entry = service.entries()["tools"]
    assert isinstance(entry, catalog.OciImage)
    assert not service.is_here(entry)
    image = await shop.pull(service, "tools")
    assert (image.name, image.oci_digest) == ("tools", pinned)
    assert image.oci_reference == entry.reference
    assert service.is_here(entry)
    assert await service.resolve("tools") == image
    assert (await shop.pull(service, "tools", name="other")).name == "other"


async def test_a_vm_gets_what_the_catalog_has_and_the_error_says_who_needs_a_login(shop: Shop) -> None:
    registry = shop.registry
    service = shop.service(tools=registry.image())
    registry.auth, registry.users = "bearer", {"ann": "secret"}
    with pytest.raises(BangerError) as caught:
        await service.resolve("tools")
    assert caught.value.code is ErrorCode.PERMISSION_DENIED
    assert caught.value.data["image"] == "tools"
    login = {registry.address: Credential(username="ann", password="secret")}
    image = await service.pull(Wanted(reference="tools"), credentials=login)
    assert await service.resolve("tools") == image
    registry.auth = ""
    await service.delete("tools")
    assert (await service.resolve("tools")).name == "tools"


async def test_another_digest_in_the_configuration_is_another_image(shop: Shop) -> None:
    registry = shop.registry
    first, second = registry.image(layers=[b"1"]), registry.image(layers=[b"2"])
    old = await shop.pull(shop.service(tools=first), "tools")
    service = shop.service(tools=second)
    assert not service.is_here(service.entries()["tools"])
    assert await service.resolve("tools") == old, "what is here is what a VM gets"
    shop.store.used.add(old.id)
    new = await shop.pull(service, "tools")
    assert new.oci_digest == second
    assert {image.name for image in service.list()} == {"tools", f"tools-{old.id[:12]}"}


async def test_an_entry_takes_no_name_from_an_image_of_another_kind(shop: Shop) -> None:
    service = shop.service(tools=shop.registry.image())
    mine = await service.register("tools", shop.own)
    assert not service.is_here(service.entries()["tools"])
    with pytest.raises(BangerError) as caught:
        await shop.pull(service, "tools")
    assert caught.value.code is ErrorCode.ALREADY_EXISTS
    assert service.list() == [mine]


async def test_the_configuration_may_take_a_built_in_name(shop: Shop) -> None:
    digest = f"sha256:{'0' * 64}"
    entries = shop.service(**{"debian-bookworm": digest}).entries()
    assert isinstance(entries["debian-bookworm"], catalog.OciImage)
    assert catalog.IMAGES.keys() <= entries.keys()


def test_a_name_of_the_catalog_gets_the_login_of_its_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = f"sha256:{'0' * 64}"
    config = tmp_path / "config.toml"
    config.write_text(f'[[catalog]]\nname = "tools"\nreference = "example.org/tools@{digest}"\n')
    docker = tmp_path / "docker"
    docker.mkdir()
    (docker / "config.json").write_text('{"auths": {"example.org": {"auth": "YW5uOnNlY3JldA=="}}}')
    monkeypatch.setenv("DOCKER_CONFIG", str(docker))
    found, _ = request_credentials("tools", str(config))
    assert found["example.org"]["username"] == "ann"
    assert request_credentials("debian-bookworm", str(config)) == ({}, ())


async def settled(*tries: asyncio.Future[Image]) -> tuple[list[Image], list[BangerError]]:
    won: list[Image] = []
    lost: list[BangerError] = []
    for result in await asyncio.gather(*tries, return_exceptions=True):
        if isinstance(result, BangerError):
            lost.append(result)
        else:
            assert isinstance(result, Image), result
            won.append(result)
    return won, lost


async def test_the_loser_of_a_race_for_a_name_fails_and_leaves_nothing(shop: Shop) -> None:
    registry = shop.registry
    registry.image("one")
    registry.image("two")
    service = shop.service()
    one, two = f"{registry.address}/one", f"{registry.address}/two"
    kinds: dict[str, Callable[[], Awaitable[Image]]] = {
        "pull": lambda: shop.pull(service, one, name="x"),
        "pull another": lambda: shop.pull(service, two, name="x"),
        "register": lambda: service.register("x", shop.own),
    }
    races = [("pull", "pull another"), ("pull", "register"), ("register", "pull"), ("register", "register")]
    for race in races:
        what = " and ".join(race)
        won, lost = await settled(*(asyncio.ensure_future(kinds[kind]()) for kind in race))
        assert [error.code for error in lost] == [ErrorCode.ALREADY_EXISTS], what
        assert service.list() == won, what
        assert shop.folders() == [image.id for image in won], what
        await service.delete("x")
        assert shop.folders() == []


async def test_a_name_is_taken_that_was_published_just_before_a_crash(shop: Shop) -> None:
    shop.registry.image()
    service = shop.service()
    image = await shop.pull(service, f"{shop.registry.address}/app")
    await shop.store.delete(image.id)  # as if the store had not heard of it yet
    with pytest.raises(BangerError) as caught:
        await service.register("app", shop.own)
    assert caught.value.code is ErrorCode.ALREADY_EXISTS
    assert service.list() == [image]


async def test_two_who_want_the_same_get_it(shop: Shop) -> None:
    shop.registry.image("one")
    service = shop.service()
    reference = f"{shop.registry.address}/one"
    won, lost = await settled(*(asyncio.ensure_future(shop.pull(service, reference)) for _ in range(2)))
    assert lost == []
    assert won[0] == won[1]
    assert shop.made == 1
    await service.register("mine", shop.own)
    won, lost = await settled(*(asyncio.ensure_future(service.promote("mine")) for _ in range(2)))
    assert lost == []
    assert won[0] == won[1]
    assert shop.folders() == sorted(image.id for image in service.list())


async def test_promotion_and_deletion_at_once_leave_one_of_both(shop: Shop) -> None:
    service = shop.service()
    await service.register("mine", shop.own)
    both = (service.promote("mine"), service.delete("mine"))
    await asyncio.gather(*both, return_exceptions=True)
    assert shop.folders() == [image.id for image in service.list()]


async def test_what_vms_have_is_not_deleted(shop: Shop) -> None:
    shop.registry.image()
    service = shop.service()
    image = await shop.pull(service, f"{shop.registry.address}/app")
    shop.store.used.add(image.id)
    with pytest.raises(BangerError) as caught:
        await service.delete("app")
    assert caught.value.code is ErrorCode.IN_USE
    assert service.list() == [image]
    assert Path(image.rootfs_path).exists()
    assert await service.resolve("app") == image


async def test_the_daemons_start_sweeps_every_folder(shop: Shop) -> None:
    service = shop.service()
    paths = shop.paths
    left = [
        Path(paths.images_dir, ".staging-a"),
        Path(paths.images_dir, ".build-a"),
        Path(paths.kernels_dir, ".staging-k"),
        Path(paths.tools_dir, ".staging-t"),
    ]
    for path in left:
        path.mkdir(parents=True)
    await service.sweep()
    assert not any(path.exists() for path in left)
