"""What config.toml says of new VMs and of the rounds, from the file's words to what is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from banger.api.requests import CreateVM
from banger.config.paths import resolve_paths
from banger.config.settings import Settings
from banger.config.toml import parse_settings
from banger.disk.strategies import RootDisks
from banger.helper.interface import Helper
from banger.image.service import ImageService
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.model.records import Image, VMSpec
from banger.network.host import HostNetwork
from banger.store.database import Database
from banger.store.images import ImageTable
from banger.store.vms import VMTable
from banger.vm.background import Background
from banger.vm.handles import HandleCache
from banger.vm.service import VMService
from banger.vm.services import Services
from tests.fakes.workspaces import FakeWorkspaces
from tests.unit.vm.test_background import FakeCare
from tests.unit.vm.test_service import IMAGE, Disks, Network, no_monitor

pytestmark = pytest.mark.anyio

MIB = 1 << 20


def settings(text: str) -> Settings:
    return parse_settings(text.encode(), "config.toml")


class Images:
    """Remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def resolve(self, reference: str, _progress: Progress) -> Image:
        self.asked.append(reference)
        return IMAGE


@pytest.fixture
def images() -> Images:
    return Images()


@pytest.fixture
async def database(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(str(tmp_path / "db"))
    await ImageTable(opened).put(IMAGE)
    yield opened
    await opened.close()


def service(text: str, images: Images, *, database: Database, home: Path) -> VMService:
    return VMService(
        Services(
            settings=settings(text),
            paths=resolve_paths({"BANGER_HOME": str(home)}),
            workspaces=FakeWorkspaces(),
            instance="0" * 16,
            boot_id="boot",
            table=VMTable(database),
            cache=HandleCache("boot"),
            helper=cast(Helper, None),
            images=cast(ImageService, images),
            network=cast(HostNetwork, Network()),
            disks=cast(RootDisks, Disks()),
            find_monitor=no_monitor,
            find_monitor_of=no_monitor,
            capabilities=(),
        )
    )


async def test_the_default_image(images: Images, database: Database, tmp_path: Path) -> None:
    vms = service('default_image_name = "mine"\n', images, database=database, home=tmp_path)
    await vms.create(CreateVM(name="one", start=False), no_progress)
    await vms.create(CreateVM(name="two", image="other", start=False), no_progress)
    assert images.asked == ["mine", "other"]


async def test_the_defaults_of_new_vms(images: Images, database: Database, tmp_path: Path) -> None:
    text = (
        '[vm_defaults]\nvcpu = 3\nmemory_mib = 300\ndisk_size = "96M"\n'
        'system_overlay_size = "128M"\nnat = true\n'
    )
    vms = service(text, images, database=database, home=tmp_path)
    said: list[ProgressEvent] = []
    made = await vms.create(CreateVM(name="one", start=False), said.append)
    assert made.spec == VMSpec(
        vcpu_count=3,
        memory_mib=300,
        work_disk_size_bytes=96 * MIB,
        system_overlay_size_bytes=128 * MIB,
        nat_enabled=True,
    )
    assert said[0].message == "spec: 3 vcpu | 300 MiB | 96M disk"
    asked = CreateVM(name="two", vcpu_count=1, nat=False, start=False)
    other = await vms.create(asked, no_progress)
    assert (other.spec.vcpu_count, other.spec.nat_enabled, other.spec.memory_mib) == (1, False, 300)


async def until_done(care: FakeCare, text: str, what: str) -> set[str]:
    """What the rounds did by the time that `what` was done twice."""
    background = Background(care, settings(text), clock_interval_s=0, stale_interval_s=0.05)
    background.start()
    try:
        async with asyncio.timeout(50):
            while care.done.count((what, 1)) < 2:
                care.happened.clear()
                await care.happened.wait()
    finally:
        await background.close()
    return {name for name, _ in care.done}


async def test_the_interval_of_the_figures() -> None:
    text = 'stats_poll_interval = "100ms"\nmetrics_poll_interval = "24h"\n'
    assert await until_done(FakeCare(), text, "stats") == {"stats", "cap"}


async def test_the_interval_of_the_monitors_metrics() -> None:
    text = 'stats_poll_interval = "24h"\nmetrics_poll_interval = "100ms"\n'
    assert await until_done(FakeCare(), text, "flush") == {"flush", "stats"}


async def test_vms_that_nobody_uses_are_stopped() -> None:
    text = 'stats_poll_interval = "24h"\nmetrics_poll_interval = "24h"\nauto_stop_stale_after = '
    assert await until_done(FakeCare(), text + '"7s"\n', "stale") == {"stale"}
    text = text.replace("24h", "100ms", 1)  # with the stats' rounds to see that time passes
    assert await until_done(FakeCare(), text + '"0"\n', "stats") == {"stats", "cap"}
