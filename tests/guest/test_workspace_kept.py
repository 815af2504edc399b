"""The work in a workspace outlives stop, delete, --rm and a killed daemon, and the output says how to get it.

Two guests, one after the other: what is brought into them is a repository of the test's own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from banger.daemon.main import READY_LINE
from tests.fakes.keptwork import git
from tests.guest.instance import Instance, until

pytestmark = [pytest.mark.guest, pytest.mark.limit(600)]

NAME = "worker"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user") / "app"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "code.txt").write_text("one\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


@pytest.fixture(scope="module")
def quick(banger: Instance) -> Iterator[None]:
    """The daemon of this instance for now: its rounds come every second."""
    argv = banger.argv(sys.executable, "-m", "tests.guest.quickrounds")
    with subprocess.Popen(argv, env=banger.environment, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline().strip() == READY_LINE
            yield
        finally:
            daemon.kill()


@pytest.fixture(scope="module")
def worker(banger: Instance, quick: None, repository: Path) -> str:
    banger.ok("vm", "run", "--name", NAME, "-d", str(repository))
    return NAME


def write(banger: Instance, name: str, file: str, text: str) -> None:
    """In the workspace of a running guest, and on its disk."""
    command = f"printf '%s\\n' '{text}' > /root/repo/{file} && sync"
    banger.ok("vm", "exec", name, "--", "sh", "-c", command)


def kept(banger: Instance, name: str) -> dict[str, Any]:
    """As the store has it: nothing is kept by asking."""
    listed: list[dict[str, Any]] = json.loads(banger.ok("workspace", "list", "--json").text)
    return next(work for work in listed if work["vm_name"] == name)


def pulled(banger: Instance, name: str, repository: Path, file: str) -> str:
    banger.ok("workspace", "pull", name)
    return git(repository, "show", f"refs/banger/{name}/worktree:{file}")


def said(name: str) -> str:
    return f"work of {name} is kept: banger workspace pull {name}"


def test_the_round_keeps_what_a_running_guest_has_written(banger: Instance, worker: str) -> None:
    write(banger, worker, "round.txt", "from the round")
    work = until(lambda: (w := kept(banger, worker)).get("changed") and w, timeout_s=120)
    assert isinstance(work, dict)
    assert work["how"] in ("guest-git", "guest-files")
    (ref,) = work["refs"]
    assert ref["name"] == "worktree"
    refused = banger.banger("workspace", "rm", "-f", worker)
    assert refused.status == 1
    assert f"banger vm delete --discard-work {worker}" in refused.stderr


def test_a_daemon_killed_in_the_middle_of_a_keep_loses_nothing(
    banger: Instance, worker: str, repository: Path
) -> None:
    """On the stop: the next command's daemon finds the VM, and the same command keeps again."""
    write(banger, worker, "stop.txt", "from the stop")
    pid = banger.daemon_pid()
    stopping = banger.start("vm", "stop", worker)
    assert stopping.stderr is not None
    assert stopping.stderr.readline() == f"keeping the work in {worker}\n".encode()
    os.kill(pid, signal.SIGKILL)
    stopping.communicate(timeout=60)
    assert stopping.returncode == 1
    stopped = banger.ok("vm", "stop", worker)
    assert said(worker) in stopped.stderr
    assert banger.state(worker) == "stopped"
    assert [path.name for path in Path(banger.paths.work_dir).iterdir()] == [str(banger.show(worker)["id"])]


def test_a_deleted_vms_work_is_pulled_as_the_delete_says(
    banger: Instance, worker: str, repository: Path
) -> None:
    deleted = banger.ok("vm", "delete", worker)
    assert said(worker) in deleted.stderr
    assert banger.vms() == []
    assert pulled(banger, worker, repository, "round.txt") == "from the round"
    assert pulled(banger, worker, repository, "stop.txt") == "from the stop"
    banger.ok("workspace", "rm", "-f", worker)


def test_rm_keeps_what_the_command_did_in_a_guest_without_git(banger: Instance, repository: Path) -> None:
    command = 'rm -f "$(command -v git)"; echo from rm > /root/repo/rm.txt; exit 3'
    ran = banger.banger("vm", "run", "--rm", "--name", "brief", str(repository), "--", "sh", "-c", command)
    assert ran.status == 3, banger.explain(["vm", "run"], ran)
    assert said("brief") in ran.stderr
    assert banger.vms() == []
    assert kept(banger, "brief")["how"] == "guest-files"
    assert pulled(banger, "brief", repository, "rm.txt") == "from rm"
    banger.ok("workspace", "rm", "-f", "brief")


def test_a_killed_guests_work_is_read_off_its_disk_and_goes_only_when_discarded(
    banger: Instance, repository: Path
) -> None:
    """The disk is damaged then, so that nothing on it can be kept any more."""
    banger.ok("vm", "run", "--name", "waste", "-d", str(repository))
    write(banger, "waste", "waste.txt", "from the disk")
    banger.ok("vm", "kill", "--signal", "KILL", "waste")
    assert pulled(banger, "waste", repository, "waste.txt") == "from the disk"
    assert kept(banger, "waste")["how"] == "disk"
    with (banger.vm_dir("waste") / "work.ext4").open("r+b") as disk:
        disk.write(bytes(1 << 20))
    refused = banger.banger("vm", "delete", "waste")
    assert refused.status == 1
    assert "banger: the work in waste could not be kept: " in refused.stderr
    assert "banger vm delete --discard-work waste" in refused.stderr
    assert banger.state("waste") == "stopped"
    deleted = banger.ok("vm", "delete", "--discard-work", "waste")
    assert "is kept" not in deleted.stderr
    assert json.loads(banger.ok("workspace", "list", "--json").text) == []
    assert os.listdir(banger.paths.work_dir) == []
