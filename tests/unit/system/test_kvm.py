"""The KVM probe's answers, the counter's rate, and the ends of processes."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from banger.model.records import ProcessIdentity
from banger.system import kvm, kvm_probe, tsc
from banger.system.exits import ExitWatch
from banger.system.listeners import listens_on
from banger.system.process import read_stat

pytestmark = pytest.mark.anyio


async def test_no_device_and_a_closed_one(tmp_path: Path) -> None:
    missing = await kvm.probe_kvm(str(tmp_path / "kvm"))
    assert (missing.present, missing.usable) == (False, False)
    (tmp_path / "folder").mkdir()
    closed = await kvm.probe_kvm(str(tmp_path / "folder"))
    assert (closed.present, closed.openable, closed.usable) == (True, False, False)


async def test_a_file_that_is_no_kvm_is_not_usable(tmp_path: Path) -> None:
    (tmp_path / "kvm").write_bytes(b"")
    status = await kvm.probe_kvm(str(tmp_path / "kvm"))
    assert (status.openable, status.usable) == (True, False)
    assert status.reason


@pytest.mark.parametrize(
    ("output", "usable", "reason"),
    [
        ('{"ok": true, "ns_per_instruction": 0.4}', True, ""),
        ('{"ok": true, "ns_per_instruction": 25.0}', True, ""),
        ('{"ok": true, "ns_per_instruction": 523.8}', False, "524 ns an instruction"),
        ('{"ok": false, "reason": "exit 8"}', False, "exit 8"),
        ("garbage", False, "the probe guest failed"),
    ],
)
async def test_what_the_probe_says_is_judged(
    output: str, usable: bool, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "probe.py"
    script.write_text(f"print({output!r})")
    monkeypatch.setattr(kvm_probe, "__file__", str(script))
    monkeypatch.setattr(kvm, "PROBE_TIMEOUT_S", 50.0)
    status = await kvm.probe_kvm("/dev/null")
    assert status.usable is usable
    assert reason in status.reason


async def test_a_probe_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "probe.py"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(kvm_probe, "__file__", str(script))
    monkeypatch.setattr(kvm, "PROBE_TIMEOUT_S", 0.2)
    assert not (await kvm.probe_kvm("/dev/null")).usable


async def test_the_counters_rate_is_steady() -> None:
    first, second = await asyncio.to_thread(tsc.measure_tsc_khz), await asyncio.to_thread(tsc.measure_tsc_khz)
    if platform.machine() != "x86_64":
        assert first == second == 0
    else:
        assert first > 100_000
        assert abs(first - second) < first / 1000


def identity(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    stat = read_stat(process.pid)
    assert stat is not None
    return ProcessIdentity(role="test", pid=process.pid, start_time=stat.start_time)


@pytest.mark.parametrize(
    ("argv", "expected"), [(["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -TERM $$; sleep 90"], -15)]
)
async def test_an_end_is_heard_with_its_status(argv: list[str], expected: int) -> None:
    with await asyncio.to_thread(subprocess.Popen, argv) as process:
        watch = ExitWatch(identity(process))
        async with asyncio.timeout(50):
            first, second = await asyncio.gather(watch.wait(), watch.wait())
            assert (first, second) == (expected, expected)
        assert await watch.wait() == expected  # not reaped: the same answer later
        watch.close()


async def test_a_stranger_of_the_same_pid_is_left_alone() -> None:
    own = read_stat(os.getpid())
    assert own is not None
    watch = ExitWatch(ProcessIdentity(role="x", pid=os.getpid(), start_time=own.start_time + 1))
    assert watch.kill(signal.SIGKILL) is False
    assert await watch.wait() is None
    watch.close()


def test_listening_is_seen_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        assert not listens_on(os.getpid(), "vu.sock")
        sock.bind("vu.sock")
        assert not listens_on(os.getpid(), "vu.sock")
        sock.listen()
        assert listens_on(os.getpid(), "vu.sock")
        assert not listens_on(os.getppid(), "vu.sock")
    assert not listens_on(2**22 - 1, "vu.sock")
