"""The daemon dies while it keeps the work of a VM, on a stop, on a delete, on request: no work is lost.

At every act of keeping and at some of the programs that it runs. Real store, real git, a real work disk;
the guest is the fake's, which knows no git, so that its work is read off the disk. Whatever the daemon's end
left: the next one sweeps, the same command works, and what is kept in the end is all of it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.vm.steps import Act
from tests import capabilities
from tests.crash.driver import How, Life, Look, fork_life, occurrences
from tests.crash.operations import GIT_ALONE, NAME, WORK_FILE
from tests.crash.test_points import CLONE_NEWNET, KEEPING_ALONE
from tests.crash.walk import Host

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.limit(1800),
    capabilities.require("netns", "tun"),
]

FIRST = {"stop": ("create", "bring"), "delete": ("create", "bring"), "keep": ("create", "bring", "kill")}
PROGRAMS_OF_EACH = 3
"""Evenly spread over the run: the first, one in the middle, the last."""


@pytest.fixture(scope="module")
def host(built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    made: Host | None = None
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        made = Host(tmp_path_factory.mktemp("keeping"))
        yield made
    finally:
        if made is not None:
            made.clean()
        assert libc.setns(own, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(own)


@pytest.fixture(autouse=True)
def nothing_kept(host: Host) -> None:
    """Of the test before."""
    shutil.rmtree(host.home / "state" / "work", ignore_errors=True)


def lived(host: Host, life: Life) -> tuple[dict[str, Look], bool]:
    looks, killed = fork_life(host.home, host.firecracker, life)
    return {look.did: look for look in looks}, killed


def store(host: Host) -> Path:
    """The one store that there is, with nothing else beside it."""
    (folder,) = (host.home / "state" / "work").iterdir()
    return folder


def shown(folder: Path, what: str) -> str:
    argv = ["git", "-C", str(folder / "repo.git"), "show", "-s", "--format=%s", what]
    if ":" in what:
        argv = ["git", "-C", str(folder / "repo.git"), "show", what]
    environment = {**os.environ, **GIT_ALONE}
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60, env=environment)
    return done.stdout.strip()


def check_kept(host: Host) -> None:
    folder = store(host)
    assert shown(folder, "refs/work/heads/main") == "done in the guest"
    assert shown(folder, f"refs/work/worktree:{WORK_FILE}") == "work"
    checked = ["git", "-C", str(folder / "repo.git"), "fsck", "--strict", "--no-dangling"]
    subprocess.run(checked, check=True, capture_output=True, timeout=60, env={**os.environ, **GIT_ALONE})


def chosen(points: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The acts of keeping, and some of the programs run within them."""
    acts = {f"{act.value}:{when}" for act in KEEPING_ALONE for when in ("before", "after")}
    names = [point for point, _ in points]
    inside = points[names.index("keep:disk:before") : names.index("keep:disk:after")]
    run = [entry for entry in inside if entry[0].startswith("run:")]
    spread = {round(n * (len(run) - 1) / (PROGRAMS_OF_EACH - 1)) for n in range(PROGRAMS_OF_EACH)}
    return [entry for entry in points if entry[0] in acts or (entry in run and run.index(entry) in spread)]


@pytest.mark.parametrize("operation", FIRST)
def test_the_daemon_dies_in_the_middle_of_a_keep(host: Host, operation: str) -> None:
    armed = Life(recover=False, first=FIRST[operation], armed=operation, programs=True)
    looks, _ = lived(host, armed)
    assert looks["armed"].error == "", looks
    points = chosen(occurrences(looks["armed"].points))
    assert len(points) >= PROGRAMS_OF_EACH + 2, points
    if operation != "delete":
        lived(host, Life(recover=False, armed="delete"))
    check_kept(host)
    for point, nth in points:
        shutil.rmtree(store(host))
        looks, killed = lived(
            host,
            Life(
                recover=False,
                first=FIRST[operation],
                armed=operation,
                how=How.KILL,
                point=point,
                nth=nth,
                programs=True,
            ),
        )
        assert killed, f"{operation} at {point} ({nth}): {looks}"
        looks, _ = lived(host, Life())
        where = f"{operation}, killed at {point} ({nth}): {looks}"
        assert looks["found"].findings == (), where
        assert (looks["gone"].error, looks["gone"].state, looks["gone"].findings) == ("", "none", ()), where
        check_kept(host)


@pytest.mark.parametrize("error_at", ["keep:disk:before", "keep:disk:after"])
def test_a_keep_that_fails_leaves_the_vm_and_can_be_repeated(host: Host, error_at: str) -> None:
    life = Life(recover=False, first=FIRST["delete"], armed="delete", how=How.RAISE, point=error_at, error=28)
    looks, _ = lived(host, life)
    armed = looks["armed"]
    assert armed.reached
    assert armed.error == f"the work in {NAME} could not be kept: No space left on device"
    assert armed.state == "stopped"
    looks, _ = lived(host, Life())
    assert looks["start"].healthy
    assert (looks["gone"].error, looks["gone"].state) == ("", "none")
    check_kept(host)


@pytest.mark.parametrize("point", [f"{Act.WORKSPACE_SAVE}:before", f"{Act.WORKSPACE_SAVE}:after"])
def test_the_daemon_dies_as_a_workspace_is_recorded(host: Host, point: str) -> None:
    """The client's command fails, and is repeated; a VM whose workspace nobody knows goes as any other."""
    _, killed = lived(host, Life(recover=False, first=("create",), armed="bring", how=How.KILL, point=point))
    assert killed
    looks, _ = lived(host, Life())
    assert (looks["gone"].error, looks["gone"].state, looks["gone"].findings) == ("", "none", ())
