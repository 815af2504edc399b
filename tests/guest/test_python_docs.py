"""Every program of docs/python.md runs, in the page's order, and prints what the page says.

On one instance; the page's VM `web` is there from its second program to its last. After them, what only a
real daemon and a real guest can show of the SDK.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.guest.instance import BOOT_TIMEOUT_S, Instance, until
from tests.guest.pythonpage import Program, programs

pytestmark = [pytest.mark.guest, pytest.mark.limit(600)]


GIT = ("env", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
"""Who runs the tests may have told git to sign commits."""
STRICT = ("-X", "dev", "-W", "error", "-I")
SLOW = re.compile(r"^Executing <.*> took \d+\.\d+ seconds\n", re.M)
"""What asyncio says of `-X dev` when the host kept a program waiting for a tenth of a second."""


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.heading)
def test_the_programs_print_what_the_page_says(banger: Instance, program: Program) -> None:
    """As a user's own: with this interpreter, where banger is installed."""
    if ".connect(22," in program.code:  # a reader's guest has booted by now
        asked = ("vm", "exec", "web", "--", "systemctl", "is-active", "ssh")
        until(lambda: banger.banger(*asked).text == "active\n", timeout_s=BOOT_TIMEOUT_S)
    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf-8") as file:
        file.write(program.code)
        file.flush()
        os.chmod(file.name, 0o644)
        done = banger.run_in_netns(*GIT, sys.executable, *STRICT, file.name, timeout_s=240)
    assert done.status == 0, banger.explain(("python", program.heading), done)
    assert done.text == program.prints, banger.explain(("python", program.heading), done)
    assert not SLOW.sub("", done.stderr), done.stderr


HOLD = """
import sys
from banger import Client

vm = Client().run(name="held")
print("ready", flush=True)
for line in sys.stdin:
    print(vm.exec(["echo", line.strip()], text=True).stdout, end="", flush=True)
"""


def test_a_vm_of_run_outlives_a_killed_daemon_and_not_its_program(banger: Instance) -> None:
    """The lease is taken again of the next daemon; it ends with the program."""
    with subprocess.Popen(
        banger.argv(sys.executable, "-I", "-c", HOLD),
        env=banger.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == b"ready\n"
            os.kill(banger.daemon_pid(), signal.SIGKILL)
            banger.ok("daemon", "start")
            began = time.monotonic()
            while time.monotonic() - began < 12:  # longer than a new daemon waits for its programs
                assert banger.state("held") == "running"
                time.sleep(1)
            program.stdin.write(b"still here\n")
            program.stdin.flush()
            assert program.stdout.readline() == b"still here\n"
        finally:
            os.killpg(program.pid, signal.SIGKILL)
    until(lambda: banger.vms() == [], timeout_s=60)


def test_work_is_not_lost_with_the_vm_of_a_block(banger: Instance, tmp_path: Path) -> None:
    """And a repository does not take the place of another unasked."""
    code = f"""
import subprocess
from banger import BangerError, Client, ErrorCode, prepare_workspace, pull_work

def git(*words):
    argv = ["git", "-C", {str(tmp_path)!r}, *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True)

git("init", "--quiet", "--initial-branch=main")
open({str(tmp_path / "file")!r}, "w").write("one\\n")
git("add", ".")
git("-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "One")
with Client() as client:
    with client.run(name="brief") as vm:
        prepare_workspace(vm, {str(tmp_path)!r})
        assert vm.exec(["pwd"]).stdout == b"/root/repo\\n"
        assert vm.exec(["pwd"], user="nobody").stdout != b"/root/repo\\n"
        vm.exec(["sh", "-c", "echo two >>file"])
        try:
            prepare_workspace(vm, {str(tmp_path)!r})
        except BangerError as error:
            assert error.code is ErrorCode.ALREADY_EXISTS
        else:
            raise AssertionError
    assert "brief" in [work["vm_name"] for work in client.list_work()]
    assert b"+two" in b"".join(client.work_patch("brief"))
    pull_work(client, "brief")
    assert git("show", "refs/banger/brief/worktree:file").stdout == "one\\ntwo\\n"
"""
    done = banger.run_in_netns(*GIT, sys.executable, "-I", "-c", code, timeout_s=240)
    assert done.status == 0, banger.explain(("python",), done)
