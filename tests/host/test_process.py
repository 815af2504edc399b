"""Monitors' processes through the helper: only ours are seen and signalled, also when a pid is reused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from banger.config.paths import Paths
from banger.helper.inprocess import InProcessHelper
from banger.system import process
from tests.capabilities import require

pytestmark = [pytest.mark.host]

VM = "ab" * 32


@pytest.mark.anyio
@require("netns")
async def test_a_monitor_is_seen_with_its_role_and_ended(helper: InProcessHelper, paths: Paths) -> None:
    folder = Path(paths.vm_dir(VM))
    folder.mkdir()
    identity = await helper.launch(
        ["sleep", "60"], role="monitor", vm_id=VM, vm_dir=str(folder), stdout="monitor.log"
    )
    (seen,) = (await helper.observe(vms_dir=paths.vms_dir)).processes
    assert (seen.identity, seen.cwd) == (identity, str(folder))
    assert (await helper.observe(vms_dir=paths.vms_dir)).vm_dirs == (VM,)
    assert await helper.signal(identity, signal.SIGKILL)
    assert await helper.wait_gone(identity, timeout_s=60)
    assert not await helper.signal(identity, signal.SIGKILL)
    assert (await helper.observe(vms_dir=paths.vms_dir)).processes == ()
    for entry in folder.iterdir():
        entry.unlink()
    folder.rmdir()


@pytest.mark.anyio
@require("netns")
async def test_a_person_in_a_vms_folder_is_no_monitor(
    helper: InProcessHelper, paths: Paths, tmp_path: Path
) -> None:
    folder = Path(paths.vm_dir(VM))
    folder.mkdir()
    editor = subprocess.Popen(["cat"], cwd=folder, stdin=subprocess.PIPE)  # noqa: ASYNC220
    stranger = subprocess.Popen(["sleep", "60"], cwd=tmp_path)  # noqa: ASYNC220
    try:
        assert (await helper.observe(vms_dir=paths.vms_dir)).processes == ()
        identity = process.identify(stranger.pid, role="monitor")
        assert identity is not None
        assert not await helper.signal(identity, signal.SIGKILL)  # not in a VM's folder: not ours
        assert stranger.poll() is None
    finally:
        for child in (editor, stranger):
            child.kill()
            child.wait()
        assert editor.stdin is not None
        editor.stdin.close()
        folder.rmdir()


REUSE = """
import os, signal, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from banger.system import process

def child_with_pid(pid):
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))
    return subprocess.Popen(["sleep", "60"])

first = child_with_pid(300)
identity = process.identify(300, role="monitor")
assert first.pid == 300 and process.is_same(identity)
first.kill(); first.wait()
time.sleep(0.05)  # start times are in hundredths of a second
second = child_with_pid(300)
assert second.pid == 300, second.pid
assert not process.is_same(identity)
assert not process.send_signal(identity, signal.SIGKILL)
assert second.poll() is None
fresh = process.identify(300, role="monitor")
assert process.send_signal(fresh, signal.SIGKILL)
assert second.wait() == -signal.SIGKILL
print("survived")
"""


def test_a_reused_pid_is_never_signalled() -> None:
    """With a real reuse, in a pid namespace whose next pid can be chosen."""
    source = str(Path(process.__file__).parents[2])
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", REUSE, source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


@pytest.mark.anyio
async def test_a_launch_outlives_its_parent_recorded(tmp_path: Path) -> None:
    """The launcher is killed at once; the process runs, and its pid file names it."""
    source = str(Path(process.__file__).parents[2])
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from banger.system import process\n"
        "process.launch(['sleep', '60'], role='monitor', cwd=sys.argv[2], stdout='log')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(  # noqa: ASYNC221
        [sys.executable, "-c", script, source, str(tmp_path)], timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    (found,) = process.search(str(tmp_path))
    assert found.cwd == str(tmp_path)
    assert await _recorded(tmp_path, found.pid)
    identity = process.read_pid_file(str(tmp_path / "monitor.pid"), role="monitor")
    assert identity is not None
    assert identity.start_time == found.start_time
    assert not process.is_same(msgspec.structs.replace(identity, start_time=identity.start_time + 1))
    assert process.send_signal(identity, signal.SIGKILL)
    assert await process.wait_gone(identity, timeout_s=60)
    assert not os.path.exists(f"/proc/{identity.pid}/exe")


async def _recorded(folder: Path, pid: int) -> bool:
    """Wait for the launching shell to have become the program: then its line is in the file."""
    import asyncio

    async with asyncio.timeout(60):
        while True:
            try:
                if b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                    return f"\n{pid} (" in (folder / "monitor.pid").read_text()
            except FileNotFoundError:
                return False
            await asyncio.sleep(0.005)
