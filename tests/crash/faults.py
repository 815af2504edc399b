"""A host with the fake monitor whose faults are told to it: for tests of monitors and guests that fail.

Services are composed in this process. Only the deadline that a fault is to run into is short (`plan`), so
that a busy machine fails nothing else; bridges, taps, processes and files are real, in a network namespace
of the test module's own.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec

from banger.config.paths import Paths, resolve_paths
from banger.daemon.compose import compose
from banger.model.deadlines import Deadlines
from banger.model.records import VMRecord
from banger.system.kvm import kvm_status
from banger.vm.service import VMService
from banger.vmm.protocol import MONITOR_LOG
from tests import leaks
from tests.artifacts import artifacts
from tests.crash.driver import PATIENT, PROGRAMS, settings_for
from tests.fakes.installed import Plan, install_fake_firecracker, set_plan

CLONE_NEWNET = 0x40000000
CALL_S = 1.5
"""Of one API call that hangs; the others take milliseconds."""
_CALL = re.compile(r'The API server received a (\w+) request on "([^"]+)"')


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts, in a fresh network namespace, and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert libc.setns(before, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(before)


class FaultyHost:
    """A home with the default image, and the fake monitor beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.paths: Paths = artifacts().seed_home(self.home)
        self.firecracker = install_fake_firecracker(folder)
        asyncio.run(kvm_status())  # kept per process: no test waits for the probe
        self._deadlines = msgspec.structs.replace(PATIENT)

    def plan(self, deadlines: Deadlines = PATIENT, /, **plan: object) -> None:
        """What the next machine does, and how long whom is waited for from now on; without arguments nothing
        bad, and for long."""
        set_plan(self.folder, Plan(plan))
        for name in Deadlines.__struct_fields__:
            msgspec.structs.force_setattr(self._deadlines, name, getattr(deadlines, name))

    @asynccontextmanager
    async def services(self) -> AsyncIterator[VMService]:
        """A daemon's services; the background rounds do not call the monitor in between."""
        settings = msgspec.structs.replace(settings_for(self.firecracker), metrics_poll_interval_s=3600.0)
        paths = resolve_paths({"BANGER_HOME": str(self.home)})
        made = await compose(paths, settings, programs=PROGRAMS, deadlines=self._deadlines)
        assert isinstance(made.vms, VMService)
        try:
            yield made.vms
        finally:
            await made.close()

    def objects(self) -> list[str]:
        """Whatever a VM has on the host: its folder and what all VMs share left out, but not what the shared
        nftables say of its tap."""
        found = leaks.snapshot(self.folder, all_links=True).found
        shared = (
            "folder ",
            "link br-fc ",
            "link tap-pool-",
            "nft table ",
            f"socket {self.folder}/home/state/bangerd",
        )
        ruleset = subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True, timeout=60)
        named = {f"nft {tap}" for tap in re.findall(r'"(tap-[a-z0-9-]+)"', ruleset.stdout.decode())}
        return sorted({line for line in found if not line.startswith(shared)} | named)


async def until(ask: Callable[[], bool], *, timeout_s: float) -> None:
    """For what other processes bring about."""
    async with asyncio.timeout(timeout_s):
        while True:
            if ask():
                return
            await asyncio.sleep(0.01)


def api_calls(record: VMRecord) -> list[tuple[str, str]]:
    """(method, path) of every call that the last machine of this VM got, as the fake wrote them down."""
    text = Path(record.runtime.vm_dir, MONITOR_LOG).read_text()
    return [(method.upper(), path) for method, path in _CALL.findall(text)]
