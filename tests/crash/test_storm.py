"""A storm: eight VMs a core at once, each made, used, restarted, killed and deleted in an order of its own.

One VMService with everything real but the guests: bridge, taps, disks, and a fake Firecracker's process for
each machine. Nothing may fail, and at the end nothing may be left. The order is drawn from SEED; say
BANGER_TEST_SEED to try another.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.api.requests import CreateVM, KillVM, SetVM
from banger.config.paths import Paths
from banger.daemon.compose import compose
from banger.errors import BangerError, ErrorCode
from banger.guest.agent import AgentClient
from banger.guest.stream import Exited, Stdout
from banger.model.progress import no_progress
from banger.model.records import VMRecord
from banger.model.states import VMState
from banger.vm.service import VMService
from tests import capabilities, leaks
from tests.artifacts import artifacts
from tests.crash.driver import MIB, PATIENT, PROGRAMS, settings_for
from tests.fakes.installed import install_fake_firecracker

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.limit(600),
    capabilities.require("netns", "tun"),
]

CLONE_NEWNET = 0x40000000
SEED = int(os.environ.get("BANGER_TEST_SEED", "4"))
AT_ONCE = 8 * (os.cpu_count() or 1)
ROUNDS = 2
STEPS = ("exec", "exec", "restart", "kill", "stop", "set", "cut off", "audit")


@pytest.fixture
def netns(built: None, tmp_path: Path) -> Iterator[None]:
    """This process in a network namespace of its own, which is empty again in the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        before = leaks.snapshot(tmp_path, all_links=True)
        yield
        left = leaks.difference(before, leaks.snapshot(tmp_path, all_links=True))
        assert not left, "left on the host:\n  " + "\n  ".join(left)
    finally:
        assert libc.setns(own, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(own)


class Storm:
    def __init__(self, vms: VMService) -> None:
        self.vms = vms
        self.done: Counter[str] = Counter()

    async def one(self, number: int) -> None:
        """One VM after the other, each taken through all steps in some order."""
        drawn = random.Random(f"{SEED} {number}")
        for turn in range(ROUNDS):
            name = f"vm-{number}-{turn}"
            record = await self.vms.create(CreateVM(name=name), no_progress)
            for step in drawn.sample(STEPS, len(STEPS)):
                await self.do(step, record.id, drawn=drawn)
                self.done[step] += 1
            if drawn.random() < 0.5:
                # deleted while it boots
                await self.vms.stop(record.id, no_progress)
                start = asyncio.create_task(self.vms.start(record.id, no_progress))
                await asyncio.sleep(drawn.random() / 5)
                await self.vms.delete(record.id, no_progress)
                await aborted_at_most(start)
            else:
                await self.vms.delete(record.id, no_progress)
            self.done["delete"] += 1

    async def do(self, step: str, vm_id: str, *, drawn: random.Random) -> None:
        """From a VM that runs to one that runs."""
        vms = self.vms
        match step:
            case "exec":
                await self.says(vm_id, f"hello {drawn.random()}")
            case "restart":
                assert (await vms.restart(vm_id, no_progress)).state is VMState.RUNNING
            case "kill" | "stop":
                if step == "stop":
                    stopped = await vms.stop(vm_id, no_progress)
                else:
                    stopped = await vms.kill(vm_id, KillVM(signal="KILL"), progress=no_progress)
                assert stopped.state is VMState.STOPPED
                assert (await vms.start(vm_id, no_progress)).state is VMState.RUNNING
                await self.says(vm_id, "again")
            case "set":
                await vms.set(vm_id, SetVM(work_disk_size_bytes=96 * MIB), progress=no_progress)
            case "cut off":
                start = asyncio.create_task(vms.restart(vm_id, no_progress))
                await asyncio.sleep(drawn.random() / 5)
                await vms.kill(vm_id, KillVM(signal="KILL"), progress=no_progress)
                await aborted_at_most(start)
                assert (await vms.start(vm_id, no_progress)).state is VMState.RUNNING
            case _:
                # of what others are busy with nothing is said, and nothing that runs is found wanting
                assert not await vms.audit()

    async def says(self, vm_id: str, text: str) -> None:
        record = self.vms.resolve(vm_id)
        assert record.state is VMState.RUNNING
        agent = await AgentClient.connect(record.runtime.vm_dir)
        heard = b""
        try:
            async with await agent.exec(["echo", text]) as stream:
                async for event in stream:
                    if isinstance(event, Stdout):
                        heard += event.data
                    elif isinstance(event, Exited):
                        assert event.status == 0
        finally:
            await agent.aclose()
        assert heard == f"{text}\n".encode()


async def aborted_at_most(start: asyncio.Task[VMRecord]) -> None:
    """It got through before the kill or delete came, was ended by that, or found the VM gone."""
    try:
        await start
    except BangerError as error:
        if error.code not in (ErrorCode.ABORTED, ErrorCode.NOT_FOUND):
            raise


async def storm(paths: Paths, firecracker: str) -> Counter[str]:
    services = await compose(paths, settings_for(firecracker), programs=PROGRAMS, deadlines=PATIENT)
    try:
        vms = services.vms
        assert isinstance(vms, VMService)
        made = Storm(vms)
        async with asyncio.TaskGroup() as tasks:
            for number in range(AT_ONCE):
                tasks.create_task(made.one(number))
        assert list(vms.list()) == []
        assert list(await vms.audit()) == []
        assert os.listdir(paths.vms_dir) == []
        return made.done
    finally:
        await services.close()


def test_a_storm_leaves_nothing(netns: None, tmp_path: Path) -> None:
    paths = artifacts().seed_home(tmp_path / "home")
    began = time.monotonic()
    done = asyncio.run(storm(paths, install_fake_firecracker(tmp_path)))
    assert done["delete"] == AT_ONCE * ROUNDS
    counts = ", ".join(f"{step} {count}" for step, count in sorted(done.items()))
    print(f"\nstorm: {AT_ONCE} VMs at once, {time.monotonic() - began:.0f} s: {counts}")
