"""Processes that outlive us: recorded before they run, known again, never mistaken for another."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.model.records import ProcessIdentity
from banger.system import process

STAT = "42 (a) R 1 (x) y) S 7 42 42 0 -1 4194304 63 0 0 0 5 6 0 0 20 0 1 0 378606 4096 3 18446744073709551615"


async def wait_for_program(identity: ProcessIdentity, word: str) -> None:
    async with asyncio.timeout(50):
        while word not in Path(f"/proc/{identity.pid}/cmdline").read_text().split("\0")[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def test_parse_stat_survives_hostile_names() -> None:
    stat = process.parse_stat(STAT)
    assert (stat.pid, stat.state, stat.parent, stat.start_time, stat.cpu_ticks) == (42, "S", 7, 378606, 11)
    assert (stat.vsz_bytes, stat.rss_bytes) == (4096, 3 * os.sysconf("SC_PAGE_SIZE"))


@given(st.text(max_size=200))
def test_parse_stat_of_rubbish_is_a_value_error(text: str) -> None:
    try:
        process.parse_stat(text)
    except ValueError:
        return
    assert text.count(" ") >= 20


@given(st.integers(0, len(STAT) - 60))
def test_parse_stat_of_a_cut_line_is_a_value_error(length: int) -> None:
    with pytest.raises(ValueError):
        process.parse_stat(STAT[:length])


def test_boot_id_looks_like_one() -> None:
    assert len(process.boot_id()) == 36
    assert process.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_we_are_ourselves_and_nobody_else_is() -> None:
    me = process.identify(os.getpid(), role="test")
    assert me is not None
    assert process.is_same(me)
    assert not process.is_same(msgspec.structs.replace(me, start_time=me.start_time + 1))
    assert not process.is_same(msgspec.structs.replace(me, pid=0))
    assert not process.is_same(msgspec.structs.replace(me, pid=-1))


def test_a_zombie_is_gone() -> None:
    child = subprocess.Popen(["sleep", "60"])
    identity = process.identify(child.pid, role="x")
    assert identity is not None
    assert process.is_same(identity)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.is_same(identity)
    assert process.identify(child.pid, role="x") is None
    assert not process.send_signal(identity, signal.SIGTERM)
    child.wait()
    assert not process.is_same(identity)


@pytest.mark.anyio
async def test_launch_records_before_the_program_runs(tmp_path: Path) -> None:
    script = (
        'cat monitor.pid; pwd; echo "$0 $1"; ls -l /proc/self/fd/0 | grep -o /dev/null; echo err >&2; env'
    )
    (tmp_path / "log").write_text("before\n")
    (tmp_path / "monitor.pid").write_text(STAT)
    identity = process.launch(
        ["sh", "-c", script, "a b", "$c"], role="monitor", cwd=str(tmp_path), stdout="log", env={"K": "v"}
    )
    assert await process.wait_gone(identity, timeout_s=50)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "before"
    assert lines[1] == process.boot_id()
    assert process.parse_stat(lines[2]).pid == identity.pid
    assert lines[3:7] == [str(tmp_path), "a b $c", "/dev/null", "err"]
    assert {line.partition("=")[0] for line in lines[7:]} - {"PWD", "_", "OLDPWD", "SHLVL"} == {
        "PATH",
        "LANG",
        "K",
    }
    assert process.read_pid_file(str(tmp_path / "monitor.pid"), role="monitor") == identity
    assert process.exit_status(identity) == 0
    assert (tmp_path / "monitor.pid").stat().st_mode & 0o777 == 0o600
    (tmp_path / "monitor.pid").write_text(f"another-boot\n{lines[2]}\n")
    assert process.read_pid_file(str(tmp_path / "monitor.pid"), role="monitor") is None


@pytest.mark.anyio
async def test_launched_process_leads_its_session_and_hears_signals(tmp_path: Path) -> None:
    identity = process.launch(["sleep", "60"], role="monitor", cwd=str(tmp_path), stdout="log")
    assert os.getsid(identity.pid) == identity.pid
    await wait_for_program(identity, "sleep")
    assert not await process.wait_gone(identity, timeout_s=0.05)
    assert [(f.pid, f.start_time, f.cwd) for f in process.search(str(tmp_path))] == [
        (identity.pid, identity.start_time, str(tmp_path))
    ]
    assert process.send_signal(identity, signal.SIGTERM)
    assert await process.wait_gone(identity, timeout_s=50)
    assert process.exit_status(identity) == -signal.SIGTERM
    assert process.exit_status(msgspec.structs.replace(identity, start_time=1)) is None
    assert not Path(f"/proc/{identity.pid}").exists()  # reaped
    assert await process.wait_gone(identity, timeout_s=0)
    assert process.search(str(tmp_path)) == []


@pytest.mark.anyio
async def test_two_waiters_both_hear_and_no_descriptor_stays(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    identity = process.launch(["sleep", "60"], role="monitor", cwd=str(tmp_path), stdout="log")
    waiters = [asyncio.ensure_future(process.wait_gone(identity, timeout_s=50)) for _ in range(2)]
    await asyncio.sleep(0)
    process.send_signal(identity, signal.SIGKILL)
    assert await asyncio.gather(*waiters) == [True, True]
    assert process.exit_status(identity) == -signal.SIGKILL
    assert len(os.listdir("/proc/self/fd")) == before


def test_search_finds_by_argument_and_by_launching_shell(tmp_path: Path) -> None:
    script = "print('here', flush=True); input()"
    argv = [sys.executable, "-c", script, f"--disk={tmp_path}/x"]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        # the kernel shows a program's words a moment after it has let go of whoever started it
        assert child.stdout.readline() == b"here\n"
        found = process.search(str(tmp_path))
        assert [f.pid for f in found] == [child.pid]
        assert found[0].argv[-1] == f"--disk={tmp_path}/x"
        assert found[0].launch_role == ""
        assert process.search(str(tmp_path)[:-1]) == []
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    shell = process.FoundProcess(
        1, 1, "", ("/bin/sh", "-c", process._RECORD_THEN_EXEC, "banger-launch", "vsock.pid", "/x")
    )
    assert shell.launch_role == "vsock"


def test_launch_failures_are_clear(tmp_path: Path) -> None:
    with pytest.raises(BangerError) as caught:
        process.launch(["banger-no-such-program"], role="monitor", cwd=str(tmp_path), stdout="log")
    assert caught.value.code is ErrorCode.HOST_UNSUITABLE
    with pytest.raises(BangerError, match="cannot start sleep") as caught:
        process.launch(["sleep", "1"], role="monitor", cwd=str(tmp_path / "gone"), stdout="log")
    (tmp_path / "log").symlink_to("/etc/passwd")
    with pytest.raises(BangerError, match="cannot start sleep"):
        process.launch(["sleep", "1"], role="monitor", cwd=str(tmp_path), stdout="log")


@pytest.mark.parametrize("content", ["", "nonsense", STAT[:50], "\0" * 100])
def test_pid_file_without_a_line_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "monitor.pid").write_text(content)
    assert process.read_pid_file(str(tmp_path / "monitor.pid"), role="monitor") is None
    assert process.read_pid_file(str(tmp_path / "none"), role="monitor") is None


def test_out_of_descriptors_is_not_gone() -> None:
    me = process.identify(os.getpid(), role="x")
    assert me is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            process.is_same(me)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert process.is_same(me)
