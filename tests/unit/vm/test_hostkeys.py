"""Host keys in known_hosts: put right at a daemon's start, and never in the way of a deletion."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest

from banger.config.paths import Paths, resolve_paths
from banger.guest.ssh import HOST_KEY_FILE, KeyPair
from banger.model.records import VMRecord
from banger.model.states import VMState
from banger.vm.hostkeys import forget_host, remember_host, restore_hosts
from tests.unit.vm.test_planner import record_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return resolve_paths({"BANGER_HOME": str(tmp_path)}, uid=1000)


def vm(paths: Paths, number: int, *, key: str = "") -> VMRecord:
    record = record_of(number, VMState.STOPPED)
    folder = Path(paths.vm_dir(record.id))
    if key:
        folder.mkdir(parents=True)
        (folder / f"{HOST_KEY_FILE}.pub").write_text(f"ssh-ed25519 {key} {record.name}.vm\n")
    runtime = msgspec.structs.replace(record.runtime, vm_dir=str(folder), guest_ip=f"172.16.0.{number}")
    return msgspec.structs.replace(record, runtime=runtime)


def keys(paths: Paths) -> list[str]:
    return [line.split()[2] for line in Path(paths.known_hosts).read_text().splitlines()]


async def test_a_daemons_start_leaves_the_vms_that_there_are(paths: Paths) -> None:
    """One that a crash left goes, one from before banger kept this file comes, one without a key waits."""
    gone = vm(paths, 2)
    await remember_host(paths, gone, KeyPair(private_path="", public_key="ssh-ed25519 GONE x"))
    await restore_hosts(paths, [vm(paths, 3, key="THREE"), vm(paths, 4), vm(paths, 5, key="FIVE")])
    assert keys(paths) == ["THREE", "FIVE"]


async def test_a_file_that_cannot_be_written_stops_no_deletion(
    paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    Path(paths.known_hosts).mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        await forget_host(paths, "0" * 64)
        await restore_hosts(paths, [])
    assert len(caplog.records) == 2
    assert paths.known_hosts in caplog.text
