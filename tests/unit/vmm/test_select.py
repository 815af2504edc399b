"""Which monitor a host gets."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from banger.config.settings import Settings
from banger.errors import BangerError, ErrorCode
from banger.system.kvm import KvmStatus
from banger.system.process import boot_id
from banger.vmm import select
from banger.vmm.protocol import Monitor, MonitorKind
from banger.vmm.select import ChosenMonitor, choose_monitor
from tests.fakes.installed import install_fake_firecracker

pytestmark = pytest.mark.anyio

USABLE = KvmStatus(present=True, openable=True, usable=True)
INTERPRETED = KvmStatus(present=True, openable=True, usable=False, reason="it interprets")
ABSENT = KvmStatus(present=False, openable=False, usable=False, reason="there is no /dev/kvm")


class Host:
    """A host with these monitors installed, on a PATH of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.bridged = folder, 0
        monkeypatch.setattr("banger.system.programs.search_path", lambda: str(folder))

    def firecracker(self) -> Host:
        install_fake_firecracker(self.folder)
        return self

    def qemu(self) -> Host:
        program = self.folder / "qemu-system-x86_64"
        program.write_text("#!/bin/sh\necho QEMU emulator version 8.1.2\n")
        program.chmod(0o755)
        return self

    async def bridge(self) -> str:
        self.bridged += 1
        return "bridge"

    async def choose(self, status: KvmStatus, **settings: str) -> tuple[MonitorKind, bool, str]:
        async def kvm() -> KvmStatus:
            return status

        monitor = await choose_monitor(Settings(**settings), self.bridge, kvm=kvm)  # type: ignore[arg-type]
        assert self.bridged == 0  # fetching a tool is for when a machine is launched
        return monitor.info.kind, "kvm" in monitor.info.features, monitor.info.note


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


async def test_firecracker_where_kvm_works(host: Host) -> None:
    assert await host.firecracker().qemu().choose(USABLE) == (MonitorKind.FIRECRACKER, True, "")


async def test_qemu_with_kvm_where_there_is_no_firecracker(host: Host) -> None:
    assert await host.qemu().choose(USABLE) == (MonitorKind.QEMU, True, "")


@pytest.mark.parametrize("status", [INTERPRETED, ABSENT])
async def test_emulation_where_kvm_does_not_work(status: KvmStatus, host: Host) -> None:
    chosen = await host.firecracker().qemu().choose(status)
    assert chosen == (MonitorKind.QEMU, False, "no usable KVM here: emulated, slower")


async def test_the_setting_wins(host: Host) -> None:
    host.firecracker().qemu()
    assert (await host.choose(USABLE, vmm="qemu"))[0] is MonitorKind.QEMU
    kind, kvm, note = await host.choose(INTERPRETED, vmm="firecracker")
    assert (kind, kvm) == (MonitorKind.FIRECRACKER, False)
    assert "no usable KVM" in note


@pytest.mark.parametrize(
    ("status", "settings", "brief", "hint"),
    [
        (USABLE, {}, "no machine monitor", "install Firecracker"),
        (ABSENT, {}, "there is no /dev/kvm, and QEMU is missing", "qemu-system-x86"),
        (USABLE, {"vmm": "firecracker"}, "Firecracker is not installed", "PATH"),
        (USABLE, {"vmm": "qemu"}, "QEMU is not installed", "qemu-system-x86"),
        (USABLE, {"firecracker_bin": "/opt/none/fc"}, "no Firecracker at /opt/none/fc", "firecracker_bin"),
        (ABSENT, {"qemu_bin": "/opt/none/qemu"}, "no QEMU at /opt/none/qemu", "qemu_bin"),
    ],
)
async def test_a_host_with_nothing_is_told_what_to_do(
    status: KvmStatus, settings: dict[str, str], brief: str, hint: str, host: Host
) -> None:
    with pytest.raises(BangerError, match=brief) as caught:
        await host.choose(status, **settings)
    assert caught.value.code is ErrorCode.HOST_UNSUITABLE
    assert hint in (caught.value.hint or "")


async def test_firecracker_without_any_kvm_is_refused(host: Host) -> None:
    with pytest.raises(BangerError, match="Firecracker needs KVM: there is no /dev/kvm"):
        await host.firecracker().choose(ABSENT, vmm="firecracker")


async def test_a_running_machine_keeps_the_monitor_that_it_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def choose(settings: Settings, _bridge: object, **_more: object) -> Monitor:
        asked.append(settings.vmm)
        kind = MonitorKind.QEMU if settings.vmm == "qemu" else MonitorKind.FIRECRACKER
        return cast(Monitor, SimpleNamespace(info=SimpleNamespace(kind=kind)))

    async def bridge() -> str:
        return ""

    program = "/usr/bin/qemu-system-x86_64"
    monkeypatch.setattr(select, "choose_monitor", choose)
    monkeypatch.setattr(select, "executable", lambda pid: program if pid == os.getpid() else "")
    chosen = ChosenMonitor(Settings(), bridge)
    (first, second) = await asyncio.gather(chosen(), chosen())
    assert first is second
    assert (await chosen.of(str(tmp_path))) is first  # nothing runs there
    stat = Path("/proc/self/stat").read_text()
    (tmp_path / "monitor.pid").write_text(f"{boot_id()}\n{stat}")
    assert (await chosen.of(str(tmp_path))).info.kind is MonitorKind.QEMU
    assert await chosen() is first
    program = "/usr/bin/firecracker"
    assert await chosen.of(str(tmp_path)) is first
    assert asked == ["auto", "qemu"]
