"""A monitor that fails, dies, hangs or lies at any API call, and a guest that never answers (SPEC §2).

The calls are those that the fake wrote down in a life without faults, so that a new one is covered by
construction. Whatever happens at one: the start ends in time with an error that says where and why, the
state tells it too, nothing is left on the host, and the next start runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from banger.api.requests import CreateVM, KillVM
from banger.errors import BangerError, ErrorCode
from banger.model.deadlines import Deadlines
from banger.model.progress import ProgressEvent, no_progress
from banger.model.records import VMRecord
from banger.model.states import VMState
from banger.vm.service import VMService
from banger.vmm.errors import MonitorError
from banger.vmm.firecracker import machine as firecracker_machine
from tests.crash.driver import PATIENT
from tests.crash.faults import CALL_S, FaultyHost, api_calls, own_network, until

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.anyio]

NAME = "victim"
CLEANING_S = 60.0
"""What a teardown may take on a busy host beside what it waits for: half of any patient deadline."""
HUNG = msgspec.structs.replace(PATIENT, monitor_call_s=CALL_S)
MUTE = msgspec.structs.replace(PATIENT, agent_answer_s=0.5)
SILENT = msgspec.structs.replace(PATIENT, agent_s=2.0, emulated_silence_s=2.0)
ENDLESS = msgspec.structs.replace(PATIENT, agent_s=5.0, emulated_at_most_s=5.0)

FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "fails": (
        {"do": "fail", "fault": "told to fail"},
        r"machine: Firecracker refused {call} \(400\): told to fail",
    ),
    "dies": ({"do": "die"}, r"machine: Firecracker ended at {call} by signal 9"),
    "hangs": ({"do": "hang"}, r"machine: Firecracker did not answer {call} within 1\.5 s"),
    "freezes": (
        {"do": "die", "signal": int(signal.SIGSTOP)},
        r"machine: Firecracker did not answer {call} within 1\.5 s",
    ),
    "closes": (
        {"do": "close"},
        r"machine: Firecracker did not answer {call}: it closed the connection",
    ),
    "lies": (
        {"do": "lie", "body": "not json"},
        r"machine: Firecracker's answer to {call} makes no sense: status 200",
    ),
}
"""By what the monitor does: what the fake is told, and what the user is."""


def limits_for(kind: str) -> Deadlines:
    """What does not answer is not waited for long; whoever does may take their time."""
    return HUNG if kind in ("hangs", "freezes") else PATIENT


@pytest.fixture(scope="module")
def host(built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHost]:
    with own_network():
        made = FaultyHost(tmp_path_factory.mktemp("faults"))
        yield made
        assert made.objects() == []


@pytest.fixture
async def vms(host: FaultyHost) -> AsyncIterator[VMService]:
    host.plan()
    async with host.services() as made:
        yield made
        host.plan()
        for record in made.list():  # of a test that failed
            await made.delete(record.id, no_progress)


async def new(vms: VMService) -> VMRecord:
    return await vms.create(CreateVM(name=NAME, start=False), no_progress)


def now(vms: VMService) -> VMRecord:
    return vms.resolve(NAME)


async def is_clean(host: FaultyHost, vms: VMService) -> None:
    """Of a VM that does not run nothing is on the host but its folder, and the audit agrees."""
    assert not vms.is_alive(now(vms))
    assert host.objects() == []
    left = {path.name for path in Path(now(vms).runtime.vm_dir).iterdir()}
    assert not left & {"handles.json", "monitor.pid", "fc.sock", "v.sock", "v.sock_1025"}
    assert list(await vms.audit()) == []


async def runs_and_goes(host: FaultyHost, vms: VMService) -> None:
    """Without the fault the VM starts; once deleted, nothing of it is anywhere."""
    host.plan()
    record = await vms.start(now(vms).id, no_progress)
    assert (record.state, record.runtime.last_error) == (VMState.RUNNING, "")
    assert vms.is_alive(record)
    assert list(await vms.audit()) == []
    await vms.delete(record.id, no_progress)
    assert list(vms.list()) == []
    assert host.objects() == []
    assert not Path(record.runtime.vm_dir).exists()
    assert list(await vms.audit()) == []


async def calls_of_a_start(host: FaultyHost, vms: VMService) -> list[tuple[str, str]]:
    record = await new(vms)
    await vms.start(record.id, no_progress)
    calls = api_calls(record)
    await vms.delete(record.id, no_progress)
    assert calls[0] == ("PUT", "/machine-config")
    assert calls[-1] == ("PUT", "/actions")
    return calls


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_monitor_that_misbehaves_at_each_call_of_a_start(
    host: FaultyHost, vms: VMService, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, expected = FAULTS[kind]
    if kind == "dies":  # its sockets close a moment before it has ended
        monkeypatch.setattr(firecracker_machine, "_ENDING_S", CLEANING_S)
    calls = await calls_of_a_start(host, vms)
    descriptors = len(os.listdir("/proc/self/fd"))
    for number, (method, path) in enumerate(calls, start=1):
        record = await new(vms)
        host.plan(limits_for(kind), faults=[{**fault, "call": number}])
        began = time.monotonic()
        with pytest.raises(BangerError, match=expected.format(call=f"{method} {path}")) as caught:
            await vms.start(record.id, no_progress)
        assert time.monotonic() - began < CALL_S + CLEANING_S
        said = caught.value
        assert said.brief.startswith(f"start {NAME}: ")
        assert said.brief.endswith(f"(log: {host.paths.daemon_log})")
        assert said.code is (ErrorCode.TIMEOUT if kind in ("hangs", "freezes") else ErrorCode.MONITOR_FAILED)
        assert said.data["step"] == "machine"
        failed = now(vms)
        assert failed.state is VMState.ERROR
        assert failed.runtime.last_error
        assert failed.runtime.last_error in said.brief
        await is_clean(host, vms)
        await runs_and_goes(host, vms)
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_a_monitor_that_claims_what_it_did_not_do(host: FaultyHost, vms: VMService) -> None:
    """It says 204 to a call and does nothing. No host can tell that from a slow guest at once: either the
    VM runs without what was left out, or the start ends in time; and it can be deleted."""
    for number, _ in enumerate(await calls_of_a_start(host, vms), start=1):
        record = await new(vms)
        deadlines = msgspec.structs.replace(SILENT, agent_answer_s=MUTE.agent_answer_s)
        host.plan(deadlines, faults=[{"do": "lie", "status": 204, "body": "", "call": number}])
        async with asyncio.timeout(SILENT.emulated_silence_s + CLEANING_S):
            try:
                await vms.start(record.id, no_progress)
                running = True
            except BangerError:
                running = False
        assert now(vms).state is (VMState.RUNNING if running else VMState.ERROR)
        assert vms.is_alive(now(vms)) is running
        assert bool(now(vms).runtime.last_error) is not running
        await vms.stop(record.id, no_progress)
        await is_clean(host, vms)
        await runs_and_goes(host, vms)


async def test_a_monitor_that_never_listens(host: FaultyHost, vms: VMService) -> None:
    record = await new(vms)
    host.plan(msgspec.structs.replace(PATIENT, monitor_up_s=2.0), start_seconds=600)
    with pytest.raises(BangerError, match=r"machine: Firecracker's API did not answer within 2 s"):
        await vms.start(record.id, no_progress)
    assert now(vms).state is VMState.ERROR
    await is_clean(host, vms)
    await runs_and_goes(host, vms)


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_monitor_that_misbehaves_at_each_call_of_a_stop(
    host: FaultyHost, vms: VMService, kind: str
) -> None:
    """A guest that does not take the request gets Ctrl-Alt-Del; where that fails too, the machine is
    killed."""
    fault, _ = FAULTS[kind]
    record = await new(vms)
    host.plan(MUTE, answers=False)
    await vms.start(record.id, no_progress)
    started = len(api_calls(record))
    await vms.stop(record.id, no_progress)
    calls = api_calls(record)
    assert calls[started:] == [("PUT", "/actions")]
    for number, _call in enumerate(calls[started:], start=started + 1):
        deadlines = msgspec.structs.replace(limits_for(kind), agent_answer_s=MUTE.agent_answer_s)
        host.plan(deadlines, answers=False, faults=[{**fault, "call": number}])
        await vms.start(record.id, no_progress)
        began = time.monotonic()
        stopped = await vms.stop(record.id, no_progress)
        assert time.monotonic() - began < MUTE.agent_answer_s + CALL_S + CLEANING_S
        assert (stopped.state, stopped.runtime.last_error) == (VMState.STOPPED, "")
        await is_clean(host, vms)
    await runs_and_goes(host, vms)


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_monitor_that_misbehaves_when_it_is_asked_for_metrics(
    host: FaultyHost, vms: VMService, kind: str
) -> None:
    """The poll fails, in time; the VM is as alive as its monitor, and stops."""
    fault, _ = FAULTS[kind]
    record = await new(vms)
    await vms.start(record.id, no_progress)
    number = len(api_calls(record)) + 1
    await vms.stop(record.id, no_progress)
    deadlines = limits_for(kind)
    if deadlines is HUNG:  # it does not take the request to stop either
        deadlines = msgspec.structs.replace(HUNG, agent_answer_s=MUTE.agent_answer_s)
    host.plan(deadlines, faults=[{**fault, "call": number}])
    await vms.start(record.id, no_progress)
    began = time.monotonic()
    with pytest.raises(MonitorError, match="PUT /actions"):
        await vms.flush_metrics(record.id)
    assert time.monotonic() - began < CALL_S + CLEANING_S
    if kind == "dies":
        await until(lambda: now(vms).state is VMState.ERROR, timeout_s=CLEANING_S)
        assert "the machine ended by itself" in now(vms).runtime.last_error
    else:
        assert now(vms).state is VMState.RUNNING
        assert (await vms.stop(record.id, no_progress)).state is VMState.STOPPED
    await is_clean(host, vms)
    await runs_and_goes(host, vms)


@pytest.mark.parametrize(
    ("plan", "deadlines", "why"),
    [
        ({"ready": False}, SILENT, "no sign of life for 2 s"),
        ({"ready": False, "chatters": True}, ENDLESS, "not done after 5 s"),
        ({"dies_after": 0.3, "ready": False}, PATIENT, "the machine ended while it booted: killed"),
    ],
)
async def test_a_guest_that_never_answers(
    host: FaultyHost, vms: VMService, plan: dict[str, object], deadlines: Deadlines, why: str
) -> None:
    record = await new(vms)
    host.plan(deadlines, **plan)
    began = time.monotonic()
    with pytest.raises(BangerError, match=why) as caught:
        await vms.start(record.id, no_progress)
    assert time.monotonic() - began < ENDLESS.emulated_at_most_s + CLEANING_S
    said = caught.value
    assert said.brief.startswith(f"start {NAME}: agent: ")
    assert said.brief.endswith(f"(log: {host.paths.daemon_log})")
    assert "--- console.log" in (said.details or "")
    assert now(vms).state is VMState.ERROR
    assert why in now(vms).runtime.last_error
    await is_clean(host, vms)
    await runs_and_goes(host, vms)


@pytest.mark.parametrize("how", ["kill", "delete", "cancel"])
@pytest.mark.parametrize("frozen", [False, True], ids=["silent", "frozen"])
async def test_a_boot_that_hangs_is_ended_at_once(host: FaultyHost, how: str, frozen: bool) -> None:
    """Nothing of the patient deadlines is waited for, whether the guest says nothing or the monitor itself
    does not move any more."""
    host.plan(ready=False)
    async with host.services() as vms:
        record = await new(vms)
        if frozen:
            host.plan(faults=[{"do": "die", "signal": int(signal.SIGSTOP), "path": "/actions"}])
        reached = asyncio.Event()

        def progress(event: ProgressEvent) -> None:
            if event.step == ("machine" if frozen else "agent"):
                reached.set()

        starting = asyncio.create_task(vms.start(record.id, progress))
        await asyncio.wait_for(reached.wait(), CLEANING_S)
        await until(lambda: not frozen or ("PUT", "/actions") in api_calls(record), timeout_s=CLEANING_S)
        began = time.monotonic()
        match how:
            case "kill":
                assert (await vms.kill(record.id, KillVM(), progress=no_progress)).state is VMState.STOPPED
            case "delete":
                await vms.delete(record.id, no_progress)
            case _:
                starting.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancel" else BangerError) as caught:
            await starting
        assert time.monotonic() - began < CLEANING_S
        if isinstance(caught.value, BangerError):
            assert caught.value.code is ErrorCode.ABORTED
        if how == "delete":
            assert list(vms.list()) == []
            assert host.objects() == []
        else:
            assert now(vms).state is VMState.STOPPED
            await is_clean(host, vms)
            await runs_and_goes(host, vms)
