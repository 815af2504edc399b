"""`host audit` on the real kernel: what is put there by hand is found, and what is marked can be removed.

Real services on a home of their own in a network namespace; no VM runs. The mark is the instance's; what
has only banger's names is nobody's, is reported, and stays.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from banger.config.instance import instance_id
from banger.config.paths import Paths, resolve_paths
from banger.config.settings import Settings
from banger.daemon.compose import compose
from banger.helper import marks
from banger.system import loops
from banger.vm.service import VMService
from tests import leaks
from tests.capabilities import require

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("netns", "tun", "loop")]

VM = "ab" * 32
MIB = 1 << 20


def command(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(argv, check=True, timeout=30, capture_output=True, text=True, input=stdin)
    return done.stdout


def sleep_in(folder: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"], cwd=folder)


def make_tap(name: str, *, alias: str = "") -> None:
    command("ip", "tuntap", "add", "dev", name, "mode", "tap")
    if alias:
        command("ip", "link", "set", name, "alias", alias)


def links() -> set[str]:
    listed = command("ip", "-o", "link").splitlines()
    return {line.split(":")[1].strip().partition("@")[0] for line in listed} - {"lo"}


def attach(backing: Path, *, label: str = "") -> str:
    backing.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with backing.open("wb") as file:
        file.truncate(MIB)
    return loops.attach(str(backing), read_only=True, label=label)


def bind_socket(folder: str, name: str) -> None:
    """Through a descriptor: a path may be longer than a socket's address."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)


@asynccontextmanager
async def opened(paths: Paths, bridge: str) -> AsyncIterator[VMService]:
    settings = Settings(bridge_name=bridge, tap_pool_size=0)
    services = await compose(paths, settings)
    try:
        assert isinstance(services.vms, VMService)
        yield services.vms
    finally:
        await services.close()


@pytest.fixture
def home(netns: None, tmp_path: Path) -> Iterator[Paths]:
    found = resolve_paths({"BANGER_HOME": str(tmp_path / "one")})
    for folder in (found.vms_dir, found.images_dir):
        os.makedirs(folder, mode=0o700)
    yield found
    for loop in loops.list_loops():
        if loop.backing_file.startswith(str(tmp_path)):
            loops.detach(loop.device, backing_file=loop.backing_file)
    for name in links():
        command("ip", "link", "delete", name)


async def names(vms: VMService) -> set[str]:
    return {finding.name for finding in await vms.audit()}


async def fix(vms: VMService, home: Paths) -> None:
    assert list(await vms.repair(await vms.audit())) == []
    leaks.wait_for_loops(Path(home.state_dir))


async def test_what_carries_the_mark_is_reported_and_removed(home: Paths) -> None:
    async with opened(home, "br-one") as vms:
        assert await names(vms) == set()
        instance = instance_id(home.state_dir)
        make_tap("tap-fc-hand", alias=marks.link_alias(instance, VM, "tap"))
        make_tap("tap-pool-77", alias=marks.link_alias(instance, "", "pool"))
        make_tap("anyname", alias=marks.link_alias(instance, VM, "tap"))
        table = f"inet {marks.nft_table(instance)}"
        command("nft", "-f", "-", stdin=f"add table {table}\nadd chain {table} c\n")
        labelled = attach(Path(home.images_dir, "rootfs.ext4"), label=marks.loop_label(instance, VM))
        placed = attach(Path(home.vms_dir, VM, "cow.img"))
        bind_socket(f"{home.vms_dir}/{VM}", "fc.sock")
        folder = f"{home.vms_dir}/{VM}"
        expected = {"tap-fc-hand", "tap-pool-77", "anyname", table, labelled, placed, folder}
        assert await names(vms) == expected | {f"{folder}/fc.sock"}
        await fix(vms, home)
        # banger never made that one, whatever its alias says: the helper touches no such link
        assert await names(vms) == {"anyname"} == links()
        assert marks.nft_table(instance) not in command("nft", "list", "tables")
        assert not [loop for loop in loops.list_loops() if loop.backing_file.startswith(home.state_dir)]
        assert not Path(folder).exists()
        assert Path(home.images_dir, "rootfs.ext4").exists()


async def test_what_has_only_the_names_is_reported_and_stays(home: Paths) -> None:
    async with opened(home, "br-fc") as vms:
        make_tap("tap-fc-hand")
        make_tap("tap-pool-9", alias="banger:not-a-mark")
        command("ip", "link", "add", "br-fc", "type", "bridge")
        for table in ("banger", "banger_mine"):
            command("nft", "-f", "-", stdin=f"add table inet {table}\n")
        looked_at = attach(Path(home.images_dir, "rootfs.ext4"))
        notes = Path(home.vms_dir, "notes.txt")
        notes.write_text("mine")
        expected = {
            *("tap-fc-hand", "tap-pool-9", "br-fc", "inet banger", "inet banger_mine", looked_at, str(notes)),
        }
        try:
            assert await names(vms) == expected
            assert not any(finding.fix for finding in await vms.audit())
            await fix(vms, home)
            assert await names(vms) == expected
            assert links() == {"tap-fc-hand", "tap-pool-9", "br-fc"}
            assert notes.read_text() == "mine"
        finally:
            for table in ("banger", "banger_mine"):
                command("nft", "delete", "table", "inet", table)
            notes.unlink()


async def test_a_second_instance_sees_nothing_of_the_first(home: Paths, tmp_path: Path) -> None:
    other = resolve_paths({"BANGER_HOME": str(tmp_path / "two")})
    os.makedirs(other.state_dir, mode=0o700)
    async with opened(home, "br-one") as one, opened(other, "br-two") as two:
        instance = instance_id(home.state_dir)
        assert instance != instance_id(other.state_dir)
        make_tap("tap-fc-hand", alias=marks.link_alias(instance, VM, "tap"))
        command("ip", "link", "add", "br-one", "type", "bridge")
        command("ip", "link", "set", "br-one", "alias", marks.link_alias(instance, "", "bridge"))
        table = f"inet {marks.nft_table(instance)}"
        command("nft", "-f", "-", stdin=f"add table {table}\n")
        device = attach(Path(home.vms_dir, VM, "cow.img"), label=marks.loop_label(instance, VM))
        sleeper = sleep_in(f"{home.vms_dir}/{VM}")
        try:
            theirs = await names(one)
            assert theirs == {"tap-fc-hand", "br-one", table, device, f"{home.vms_dir}/{VM}"}
            assert await names(two) == set()
            await fix(two, other)
            assert await names(one) == theirs
            await fix(one, home)
            assert await names(one) == set()
            assert sleeper.poll() is None, "a program that is no monitor's is its owner's"
        finally:
            sleeper.kill()
            sleeper.wait(timeout=20)
