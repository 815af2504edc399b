"""Stats, health, the stale sweep and prune's delete on a VM that runs, with the fake Firecracker."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from banger.api.requests import CreateVM
from banger.config.paths import resolve_paths
from banger.daemon.compose import compose
from banger.errors import BangerError, ErrorCode
from banger.guest.agent import AgentClient
from banger.model.progress import no_progress
from banger.model.records import VMRecord, now
from banger.model.states import VMState
from banger.store.codec import time_text
from banger.vm.service import VMService
from tests.artifacts import artifacts
from tests.capabilities import require
from tests.crash.driver import PATIENT, PROGRAMS, settings_for
from tests.fakes.installed import install_fake_firecracker

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("netns", "tun")]


@pytest.fixture
async def vms(built: None, netns: None, tmp_path: Path) -> AsyncIterator[VMService]:
    home = tmp_path / "home"
    artifacts().seed_home(home)
    settings = msgspec.structs.replace(
        settings_for(install_fake_firecracker(tmp_path)),
        tap_pool_size=0,
        stats_poll_interval_s=0.0,
        metrics_poll_interval_s=0.0,
    )
    paths = resolve_paths({"BANGER_HOME": str(home)})
    services = await compose(paths, settings, programs=PROGRAMS, deadlines=PATIENT)
    assert isinstance(services.vms, VMService)
    try:
        yield services.vms
        for record in services.vms.list():
            await services.vms.delete(record.id, no_progress)
    finally:
        await services.close()


def grow_old(record: VMRecord, home: Path) -> None:
    """Last used an hour ago: a touch never goes back in time, so the database is told behind its back."""
    with closing(sqlite3.connect(resolve_paths({"BANGER_HOME": str(home)}).database, timeout=10)) as database:
        sql = "UPDATE vms SET last_touched_at = ? WHERE id = ?"
        database.execute(sql, (time_text(now() - timedelta(hours=1)), record.id))
        database.commit()


async def test_a_running_vm_is_measured_used_stopped_and_pruned(vms: VMService, tmp_path: Path) -> None:
    record = await vms.create(CreateVM(name="web"), no_progress)
    await vms.flush_metrics(record.id)
    stats = await vms.stats(record.id)
    assert stats.rss_bytes
    assert stats.work_disk_bytes
    assert stats.metrics_raw
    assert vms.resolve("web").stats == stats
    health = await vms.health(record.id)
    assert (health.healthy, health.phase) == (True, "init")
    await vms.set_clock(record.id)
    assert list(await vms.audit()) == []

    with pytest.raises(BangerError) as caught:
        await vms.delete_if_not_running(record.id, no_progress)
    assert caught.value.code is ErrorCode.WRONG_STATE

    assert not await vms.stop_if_stale(record.id, after_s=60)
    grow_old(record, tmp_path / "home")
    async with await AgentClient.connect(record.runtime.vm_dir):
        assert not await vms.stop_if_stale(record.id, after_s=60), "an open stream is use"
    assert (now() - vms.resolve("web").last_touched_at).total_seconds() < 60
    grow_old(record, tmp_path / "home")
    assert await vms.stop_if_stale(record.id, after_s=60)
    assert vms.resolve("web").state is VMState.STOPPED
    assert not await vms.stop_if_stale(record.id, after_s=60)

    dead = await vms.stats(record.id)
    assert dead.work_disk_bytes
    assert (dead.rss_bytes, dead.metrics_raw) == (None, None)
    assert not (await vms.health(record.id)).healthy
    await vms.delete_if_not_running(record.id, no_progress)
    assert list(vms.list()) == []
