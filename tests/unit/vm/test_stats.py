"""Figures of a VM: allocated bytes, its monitor's CPU and memory, and the metrics' last whole line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.model.records import ProcessIdentity, VMHandles, VMRecord, VMRuntime
from banger.model.states import VMState
from banger.system.process import boot_id, identify
from banger.vm.stats import CpuSample, allocated_bytes, collect, cpu_percent, read_metrics
from tests.unit.vm.test_planner import record_of

JSON = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20) | st.booleans(), max_size=5)


def encoded(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value)


@given(
    whole=st.lists(JSON, max_size=4), partial=JSON, cut=st.integers(min_value=0), hole=st.integers(0, 9000)
)
def test_a_partial_last_line_is_passed_over(
    tmp_path_factory: pytest.TempPathFactory, whole: list[dict[str, Any]], partial: dict[str, Any], cut: int,
    hole: int,
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "metrics.json"
    last = encoded(partial)
    last = last[: cut % (len(last) + 1)]
    path.write_bytes(bytes(hole) + b"".join(encoded(line) + b"\n" for line in whole) + last)
    assert read_metrics(str(path)) == (whole[-1] if whole else None)


@given(st.binary(max_size=300))
def test_metrics_may_be_anything(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "metrics.json"
    path.write_bytes(data)
    found = read_metrics(str(path))
    assert found is None or isinstance(found, dict)


def test_metrics_of_no_file_and_of_nesting_bombs(tmp_path: Path) -> None:
    assert read_metrics(str(tmp_path / "none")) is None
    bomb = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
    (tmp_path / "metrics.json").write_bytes(b'{"good":1}\n' + bomb + b"\n")
    assert read_metrics(str(tmp_path / "metrics.json")) == {"good": 1}


def test_allocated_is_not_apparent(tmp_path: Path) -> None:
    with (tmp_path / "disk").open("wb") as disk:
        disk.truncate(1 << 30)
        disk.write(b"x" * 4096)
        os.fsync(disk.fileno())
    assert 4096 <= (allocated_bytes(str(tmp_path / "disk")) or 0) < 1 << 20
    assert allocated_bytes(str(tmp_path / "none")) is None


def with_disk(folder: Path) -> VMRecord:
    (folder / "work.ext4").write_bytes(b"x" * 8192)
    runtime = VMRuntime(
        vm_dir=str(folder),
        work_disk_path=str(folder / "work.ext4"),
        system_overlay_path=str(folder / "overlay.ext4"),
        metrics_path=str(folder / "metrics.json"),
    )
    return msgspec.structs.replace(record_of(1, VMState.RUNNING), runtime=runtime)


def test_a_living_monitor_has_figures(tmp_path: Path) -> None:
    me = identify(os.getpid(), role="monitor")
    assert me is not None
    (tmp_path / "metrics.json").write_bytes(b'{"net":{"rx":1}}\n{"ne')
    handles = VMHandles(boot_id=boot_id(), processes=(me,))
    stats, sample = collect(with_disk(tmp_path), handles, boot_id=boot_id(), before=None)
    assert sample is not None
    assert (stats.rss_bytes or 0) > 1 << 20
    assert (stats.vsz_bytes or 0) >= (stats.rss_bytes or 0)
    assert stats.metrics_raw == {"net": {"rx": 1}}
    assert stats.work_disk_bytes is not None
    assert stats.system_overlay_bytes is None
    assert stats.cpu_percent is not None
    later, _ = collect(with_disk(tmp_path), handles, boot_id=boot_id(), before=sample)
    assert later.cpu_percent is None or later.cpu_percent >= 0


@pytest.mark.parametrize("why", ["dead", "another boot", "none"])
def test_a_dead_vm_has_disks_only(tmp_path: Path, why: str) -> None:
    me = identify(os.getpid(), role="monitor")
    assert me is not None
    gone = ProcessIdentity(role="monitor", pid=me.pid, start_time=me.start_time + 1)
    handles = {
        "dead": VMHandles(boot_id=boot_id(), processes=(gone,)),
        "another boot": VMHandles(boot_id="elsewhen", processes=(me,)),
        "none": VMHandles(boot_id=boot_id()),
    }[why]
    (tmp_path / "metrics.json").write_bytes(b'{"old":1}\n')
    stats, sample = collect(with_disk(tmp_path), handles, boot_id=boot_id(), before=None)
    assert sample is None
    assert stats.work_disk_bytes is not None
    assert (stats.cpu_percent, stats.rss_bytes, stats.vsz_bytes, stats.metrics_raw) == (
        None,
        None,
        None,
        None,
    )


def test_cpu_percent_is_of_the_same_process_only() -> None:
    def sample(at_s: float, cpu_s: float, *, start: int = 1000) -> CpuSample:
        return CpuSample(pid=7, start_time=start, at_s=at_s, cpu_s=cpu_s)

    assert cpu_percent(sample(100, 10), sample(110, 15)) == 50.0
    assert cpu_percent(sample(100, 10), sample(110, 30)) == 200.0
    assert cpu_percent(sample(100, 10), sample(100, 10)) is None
    # since its start (10 s after boot), as there is nothing to compare with
    assert cpu_percent(None, sample(30, 5)) == 25.0
    assert cpu_percent(sample(20, 400, start=2), sample(30, 5)) == 25.0
