"""The Firecracker driver: on the fake always, on the real program where there is one.

A test that takes `program` runs on both; what only the fake can do (fail at a call, hang, play a guest)
takes `fake` and a plan.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from banger.errors import ErrorCode
from banger.model.deadlines import Deadlines
from banger.vmm.errors import MonitorError, MonitorUnsupported
from banger.vmm.firecracker.api import FirecrackerApi, Json
from banger.vmm.firecracker.driver import FirecrackerMonitor, find_firecracker
from banger.vmm.firecracker.machine import FirecrackerMachine, exit_of
from banger.vmm.protocol import Exit, MachineSpec
from tests import capabilities
from tests.fakes.installed import DirectLauncher, Plan, install_fake_firecracker, set_plan
from tests.fakes.machines import VM_ID, make_vm

pytestmark = pytest.mark.anyio

real = pytest.param("real", marks=capabilities.require("firecracker"))


@pytest.fixture(params=["fake", real])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "fake":
        return install_fake_firecracker(tmp_path)
    path = capabilities.firecracker_path()
    assert path is not None
    return path


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[Plan], str]:
    def install(plan: Plan) -> str:
        return install_fake_firecracker(tmp_path, plan)

    return install


PATIENT = Deadlines(monitor_up_s=50.0, monitor_call_s=50.0)
"""The fake is a Python program: on a busy host it takes some hundred times longer than what it stands for."""


async def monitor_of(program: str) -> FirecrackerMonitor:
    monitor = await find_firecracker(program, deadlines=PATIENT)
    assert monitor is not None
    return monitor


async def launched(program: str, spec: MachineSpec, launcher: DirectLauncher) -> FirecrackerMachine:
    return await (await monitor_of(program)).launch(spec, launcher)


async def running(program: str, spec: MachineSpec, launcher: DirectLauncher) -> FirecrackerMachine:
    machine = await launched(program, spec, launcher)
    await configure_and_start(machine, spec)
    return machine


async def configure_and_start(machine: FirecrackerMachine, spec: MachineSpec) -> None:
    await machine.configure(spec)
    await machine.start()


async def test_a_machine_is_launched_configured_and_started(
    program: str, tmp_path: Path, launcher: DirectLauncher
) -> None:
    spec = make_vm(tmp_path)
    machine = await running(program, spec, launcher)
    try:
        names = set(os.listdir(spec.vm_dir))
        assert {"fc.sock", "v.sock", "monitor.log", "metrics.json", "console.log"} <= names
        assert [process.role for process in machine.processes] == ["monitor"]
        assert launcher.argvs[0][1:5] == ("--id", VM_ID[:60], "--api-sock", "fc.sock")
        with pytest.raises(MonitorError, match="not supported after starting"):
            await machine.configure(spec)
    finally:
        await machine.close()


async def test_the_configuration_is_what_was_asked_for(
    program: str, tmp_path: Path, launcher: DirectLauncher
) -> None:
    spec = make_vm(tmp_path)
    machine = await launched(program, spec, launcher)
    await machine.configure(spec)
    config = await asyncio.to_thread(_get, spec.vm_dir, "/vm/config")
    await machine.close()
    assert config["machine-config"]["vcpu_count"] == 1
    assert config["machine-config"]["mem_size_mib"] == 128
    assert config["boot-source"]["initrd_path"] == "initrd.img"
    args = config["boot-source"]["boot_args"].split()
    assert {"console=ttyS0", "reboot=k", "panic=-1", "banger.test=1"} <= set(args)
    assert "i8042.nopnp" not in args  # else Ctrl-Alt-Del would do nothing
    root, overlay = config["drives"]
    assert (root["drive_id"], root["is_read_only"], root["is_root_device"]) == ("root", True, False)
    assert (overlay["is_read_only"], overlay["cache_type"]) == (False, "Writeback")
    assert config["vsock"] == {"guest_cid": 3, "uds_path": "v.sock"}
    assert config["entropy"] is not None


async def test_pause_resume_keys_and_metrics(program: str, tmp_path: Path, launcher: DirectLauncher) -> None:
    spec = make_vm(tmp_path)
    machine = await running(program, spec, launcher)
    metrics = Path(spec.vm_dir, "metrics.json")
    before = len(metrics.read_text().splitlines())
    await machine.pause()
    assert (await asyncio.to_thread(_get, spec.vm_dir, "/"))["state"] == "Paused"
    await machine.resume()
    assert (await asyncio.to_thread(_get, spec.vm_dir, "/"))["state"] == "Running"
    await machine.flush_metrics()
    lines = metrics.read_text().splitlines()
    assert len(lines) > before  # the real one writes the line of the start when it gets round to it
    assert "utc_timestamp_ms" in json.loads(lines[-1])
    await machine.ctrl_alt_del()
    await machine.close()


async def test_actions_before_the_start_are_refused(
    program: str, tmp_path: Path, launcher: DirectLauncher
) -> None:
    machine = await launched(program, make_vm(tmp_path), launcher)
    for action in (machine.pause, machine.ctrl_alt_del, machine.flush_metrics):
        with pytest.raises(MonitorError, match="not supported before starting") as caught:
            await action()
        assert caught.value.code is ErrorCode.MONITOR_FAILED
    with pytest.raises(MonitorError, match="without kernel configuration"):
        await machine.start()
    await machine.close()


async def test_a_second_start_takes_the_sockets_of_the_first(
    program: str, tmp_path: Path, launcher: DirectLauncher
) -> None:
    """No monitor unlinks its sockets: the driver must, and log and metrics begin anew."""
    spec = make_vm(tmp_path)
    for _ in range(2):
        machine = await running(program, spec, launcher)
        launcher.started[-1].kill()
        assert (await machine.exited()).reason == "killed"
        await machine.close()
        assert {"fc.sock", "v.sock"} <= set(os.listdir(spec.vm_dir))
    assert Path(spec.vm_dir, "monitor.log").read_text().count("Running Firecracker") == 1


async def test_its_end_is_heard_at_once_and_explained(
    program: str, tmp_path: Path, launcher: DirectLauncher
) -> None:
    machine = await running(program, make_vm(tmp_path), launcher)
    waiting = [asyncio.create_task(machine.exited()) for _ in range(2)]
    await asyncio.sleep(0)
    launcher.started[-1].send_signal(signal.SIGTERM)
    async with asyncio.timeout(50):
        assert await asyncio.gather(*waiting) == [Exit(status=-15, reason="killed")] * 2
    await machine.close()


async def test_an_adopted_machine_obeys(program: str, tmp_path: Path, launcher: DirectLauncher) -> None:
    spec = make_vm(tmp_path)
    first = await running(program, spec, launcher)
    await first.close()
    second = await (await monitor_of(program)).adopt(spec.vm_dir, first.processes)
    await second.flush_metrics()
    await second.pause()
    launcher.started[-1].kill()
    assert (await second.exited()).reason == "killed"
    await second.close()


async def test_a_missing_disk_is_named(program: str, tmp_path: Path, launcher: DirectLauncher) -> None:
    spec = make_vm(tmp_path)
    machine = await launched(program, spec, launcher)
    Path(spec.vm_dir, "overlay.ext4").unlink()
    with pytest.raises(MonitorError) as caught:
        await machine.configure(spec)
    await machine.close()
    assert caught.value.brief.startswith("Firecracker refused PUT /drives/overlay (400): ")
    assert "No such file or directory" in caught.value.fault


async def test_a_program_that_ends_at_once_is_explained(
    program: str, tmp_path: Path, launcher: DirectLauncher
) -> None:
    """The socket's folder cannot be written to: made so by a folder where the socket should be."""
    spec = make_vm(tmp_path)
    real_launch = launcher.launch

    async def launch_late(argv, **words):  # type: ignore[no-untyped-def]
        Path(spec.vm_dir, "fc.sock").mkdir()
        return await real_launch(argv, **words)

    launcher.launch = launch_late  # type: ignore[method-assign]
    with pytest.raises(MonitorError, match=r"ended at once.*Failed to open the API socket|refused"):
        await launched(program, spec, launcher)


# -- what only the fake can do -----------------------------------------------------------------------


@pytest.mark.parametrize("call", range(1, 10))
async def test_every_call_may_fail(
    call: int, fake: Callable[[Plan], str], tmp_path: Path, launcher: DirectLauncher
) -> None:
    program = fake({"faults": [{"do": "fail", "call": call, "fault": "because"}]})
    spec = make_vm(tmp_path)
    machine = await launched(program, spec, launcher)
    with pytest.raises(MonitorError, match=r"^Firecracker refused PUT /\S+ \(400\): because$"):
        await configure_and_start(machine, spec)
    await machine.close()


@pytest.mark.parametrize("call", range(1, 10))
async def test_it_may_die_at_every_call(
    call: int,
    fake: Callable[[Plan], str],
    tmp_path: Path,
    launcher: DirectLauncher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("banger.vmm.firecracker.machine._ENDING_S", 50.0)
    program = fake({"faults": [{"do": "die", "call": call}]})
    spec = make_vm(tmp_path)
    machine = await launched(program, spec, launcher)
    with pytest.raises(MonitorError, match=r"^Firecracker ended at PUT /\S+ by signal 9"):
        await configure_and_start(machine, spec)
    assert await machine.exited() == Exit(status=-9, reason="killed")
    await machine.close()


async def test_a_hanging_call_has_a_deadline(
    fake: Callable[[Plan], str], tmp_path: Path, launcher: DirectLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hurried(FirecrackerApi):
        async def put(self, path: str, body: Mapping[str, Json]) -> None:
            if path.startswith("/drives/"):
                self._timeout_s = 0.2
            await super().put(path, body)

    monkeypatch.setattr("banger.vmm.firecracker.machine.FirecrackerApi", Hurried)
    program = fake({"faults": [{"do": "hang", "path": "/drives/*"}]})
    spec = make_vm(tmp_path)
    machine = await launched(program, spec, launcher)
    with pytest.raises(MonitorError, match=r"did not answer PUT /drives/root within 0\.2 s") as caught:
        await machine.configure(spec)
    assert caught.value.code is ErrorCode.TIMEOUT
    await machine.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, "}{"), (404, "<html>"), (500, ""), (200, '{"id": 7}'), (200, "x" * 2_000_000), (204, "")],
)
async def test_lies_are_errors(
    status: int, body: str, fake: Callable[[Plan], str], tmp_path: Path, launcher: DirectLauncher
) -> None:
    program = fake({"faults": [{"do": "lie", "path": "/", "status": status, "body": body}]})
    machine = await launched(program, make_vm(tmp_path), launcher)
    with pytest.raises(MonitorError):
        await machine._api.instance()
    assert (await machine._api.instance()).state == "Not started"  # and the next call works
    await machine.close()


async def test_a_slow_start_is_waited_for(
    fake: Callable[[Plan], str], tmp_path: Path, launcher: DirectLauncher
) -> None:
    spec = make_vm(tmp_path)
    machine = await running(fake({"start_seconds": 0.3}), spec, launcher)
    await machine.close()


async def test_a_start_that_takes_too_long_is_ended(
    fake: Callable[[Plan], str], tmp_path: Path, launcher: DirectLauncher
) -> None:
    monitor = await find_firecracker(fake({"start_seconds": 60}), deadlines=Deadlines(monitor_up_s=0.2))
    assert monitor is not None
    with pytest.raises(MonitorError, match=r"did not answer within 0\.2 s"):
        await monitor.launch(make_vm(tmp_path), launcher)
    assert await asyncio.to_thread(launcher.started[0].wait, 50) == -signal.SIGKILL


async def test_a_guests_reset_ends_the_machine(
    fake: Callable[[Plan], str], tmp_path: Path, launcher: DirectLauncher
) -> None:
    """The whole way round: the guest says that it is ready, hears Ctrl-Alt-Del, says that it ends."""
    spec = make_vm(tmp_path)
    said: asyncio.Queue[int] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(5)
        await reader.readexactly(int.from_bytes(head[:4], "little"))
        said.put_nowait(head[4])
        writer.write(b"\0\0\0\0\x31")
        writer.close()

    folder = os.open(spec.vm_dir, os.O_PATH)
    server = await asyncio.start_unix_server(listen, f"/proc/self/fd/{folder}/v.sock_1025")
    os.close(folder)
    machine = await running(fake({}), spec, launcher)
    async with asyncio.timeout(50):
        assert await said.get() == 0x30
        await machine.ctrl_alt_del()
        assert await said.get() == 0x32
        assert await machine.exited() == Exit(status=0, reason="reset")
    await machine.close()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("version", ["1.16.0", "1.16.1"])
async def test_pause_is_refused_where_it_breaks_the_guest(
    version: str, fake: Callable[[Plan], str], tmp_path: Path, launcher: DirectLauncher
) -> None:
    machine = await running(fake({"version": version}), make_vm(tmp_path), launcher)
    for action in (machine.pause, machine.resume):
        with pytest.raises(MonitorUnsupported, match=f"does not work with Firecracker {version}"):
            await action()
    await machine.close()


async def test_an_old_version_gets_no_new_fields(
    fake: Callable[[Plan], str], tmp_path: Path, launcher: DirectLauncher
) -> None:
    """1.15 knows no rate limit of the serial line: the driver must not call it."""
    program = fake({"version": "1.15.1", "faults": [{"do": "fail", "path": "/serial"}]})
    machine = await running(program, make_vm(tmp_path), launcher)
    await machine.close()


async def test_too_old_and_not_firecracker_at_all(tmp_path: Path) -> None:
    program = install_fake_firecracker(tmp_path, {"version": "1.9.1"})
    with pytest.raises(MonitorUnsupported, match=r"1\.9\.1 .*too old"):
        await find_firecracker(program)
    set_plan(tmp_path, {"version": "unknown"})
    with pytest.raises(MonitorError, match="does not work as Firecracker"):
        await find_firecracker(program)
    assert await find_firecracker(str(tmp_path / "nothing")) is None


@pytest.mark.parametrize(
    ("status", "log", "expected"),
    [
        (0, "", "reset"),
        (-9, "", "killed"),
        (-6, "", "failed"),
        (1, "", "failed"),
        (148, "", "failed"),
        (None, "Firecracker exiting successfully. exit_code=0\n", "reset"),
        (None, "Firecracker exiting with error. exit_code=149\n", "failed"),
        (None, "Firecracker panicked at src/x.rs", "failed"),
        (None, "", "unknown"),
    ],
)
def test_exit_reasons(status: int | None, log: str, expected: str) -> None:
    assert exit_of(status, log) == Exit(status=status, reason=expected)


def _get(vm_dir: str, path: str) -> dict[str, Any]:
    """An independent client, for looking."""
    folder = os.open(vm_dir, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"/proc/self/fd/{folder}/fc.sock")
        os.close(folder)
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        with sock.makefile("rb") as reply:
            lines = iter(reply.readline, b"\r\n")
            lengths = [
                int(line.partition(b":")[2]) for line in lines if line.lower().startswith(b"content-l")
            ]
            found: dict[str, Any] = json.loads(reply.read(lengths[0]))
    return found
