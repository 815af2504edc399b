"""The QEMU driver on the real QEMU: with a kernel that only halts, and a bridge that is only there."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from banger.model.records import ProcessIdentity
from banger.system.process import is_same
from banger.vmm.errors import MonitorError
from banger.vmm.protocol import Exit
from banger.vmm.qemu.driver import QemuMonitor, find_qemu
from banger.vmm.qemu.machine import QemuMachine
from tests import capabilities
from tests.fakes.installed import DirectLauncher, install_fake_bridge
from tests.fakes.machines import make_vm

pytestmark = [pytest.mark.anyio, pytest.mark.host, capabilities.require("qemu")]


@pytest.fixture
def launcher() -> Iterator[DirectLauncher]:
    launcher = DirectLauncher()
    yield launcher
    launcher.close()


async def monitor_with(bridge: str) -> QemuMonitor:
    async def find() -> str:
        return bridge

    monitor = await find_qemu("", find, kvm_usable=False)
    assert monitor is not None
    return monitor


async def running(folder: Path, launcher: DirectLauncher) -> QemuMachine:
    spec = make_vm(folder)
    machine = await (await monitor_with(install_fake_bridge(folder))).launch(spec, launcher)
    await machine.configure(spec)
    await machine.start()
    return machine


def vm_dir(folder: Path) -> Path:
    return folder / ("v" * 120)


async def test_a_machine_runs_pauses_and_goes_on(tmp_path: Path, launcher: DirectLauncher) -> None:
    machine = await running(tmp_path, launcher)
    assert [process.role for process in machine.processes] == ["monitor", "vsock"]
    assert {"fc.sock", "v.sock", "vu.sock", "console.log", "monitor.log"} <= set(os.listdir(vm_dir(tmp_path)))
    assert await machine._qmp.status() == "running"
    await machine.pause()
    assert await machine._qmp.status() == "paused"
    await machine.resume()
    await machine.ctrl_alt_del()
    await machine.flush_metrics()
    assert len(json.loads((vm_dir(tmp_path) / "metrics.json").read_text())["blockstats"]) == 2
    with pytest.raises(MonitorError, match="is running before it was started"):
        await machine.configure(make_vm(tmp_path / "other"))
    await machine.close()


@pytest.mark.parametrize(("index", "reason"), [(0, "failed"), (1, "killed")])
async def test_when_one_process_ends_the_other_is_ended(
    index: int, reason: str, tmp_path: Path, launcher: DirectLauncher
) -> None:
    """Of the launched: 0 is the bridge, 1 QEMU."""
    machine = await running(tmp_path, launcher)
    waiting = asyncio.create_task(machine.exited())
    await asyncio.sleep(0)
    launcher.started[index].send_signal(signal.SIGKILL)
    async with asyncio.timeout(60):
        assert (await waiting).reason == reason
    assert not any(is_same(process) for process in machine.processes)
    await machine.close()


async def test_a_term_signal_is_told_from_a_crash(tmp_path: Path, launcher: DirectLauncher) -> None:
    machine = await running(tmp_path, launcher)
    launcher.started[1].terminate()
    async with asyncio.timeout(60):
        assert await machine.exited() == Exit(status=0, reason="killed")
    await machine.close()


async def test_an_adopted_machine_obeys(tmp_path: Path, launcher: DirectLauncher) -> None:
    first = await running(tmp_path, launcher)
    await first.close()
    bridge = str(tmp_path / "vhost-device-vsock")
    second = await (await monitor_with(bridge)).adopt(str(vm_dir(tmp_path)), first.processes)
    await second.pause()
    await second.resume()
    launcher.started[1].kill()
    async with asyncio.timeout(60):
        assert (await second.exited()).reason == "killed"
    await second.close()


async def test_qemus_own_words_reach_the_user_and_nothing_is_left(
    tmp_path: Path, launcher: DirectLauncher
) -> None:
    spec = msgspec.structs.replace(make_vm(tmp_path), kernel_path="missing")
    monitor = await monitor_with(install_fake_bridge(tmp_path))
    with pytest.raises(MonitorError, match=r"QEMU ended at once: .*missing") as caught:
        await monitor.launch(spec, launcher)
    assert "missing" in (caught.value.details or "")
    assert all(process.poll() is not None for process in launcher.started)


async def test_a_bridge_that_does_not_start_is_named(tmp_path: Path, launcher: DirectLauncher) -> None:
    bridge = tmp_path / "bridge"
    bridge.write_text("#!/bin/sh\necho cannot bridge >&2; exit 3\n")
    bridge.chmod(0o755)
    with pytest.raises(MonitorError, match="the vsock bridge ended at once: cannot bridge"):
        await (await monitor_with(str(bridge))).launch(make_vm(tmp_path), launcher)
    assert len(launcher.started) == 1


async def test_sockets_of_an_earlier_run_do_not_matter(tmp_path: Path, launcher: DirectLauncher) -> None:
    spec = make_vm(tmp_path)
    monitor = await monitor_with(install_fake_bridge(tmp_path))
    for _ in range(2):
        machine = await monitor.launch(spec, launcher)
        for process in launcher.started[-2:]:
            process.kill()
        await machine.exited()
        await machine.close()


async def test_a_dead_machine_is_an_error_not_a_hang(tmp_path: Path, launcher: DirectLauncher) -> None:
    gone = (ProcessIdentity(role="monitor", pid=2**22 - 1, start_time=1),)
    machine = await (await monitor_with("")).adopt(str(tmp_path), gone)
    assert await machine.exited() == Exit(status=None, reason="unknown")
    with pytest.raises(MonitorError, match="does not answer"):
        await machine.pause()
    await machine.close()
