"""The work of a dead VM, kept by the service off a real ext4: whole, torn by a crash, damaged, hostile."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest

from banger.image.diskfolder import DiskFolders
from banger.model.records import VMRecord, VMRuntime, VMSpec, Workspace, now
from banger.model.states import VMState
from banger.system.ext4 import E2fsprogs
from banger.workspace.errors import WorkNotKept
from banger.workspace.service import WorkspaceService
from banger.workspace.stage import stage_disk, stage_guest
from tests.unit.workspace.guestgit import Guest, git
from tests.unit.workspace.test_stage import debugfs, image, replace_through_journal

pytestmark = pytest.mark.anyio
VM = "cd" * 32


class Dead:
    """guest: the workspace as it was; die() puts it on the VM's disk."""

    def __init__(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        self.guest = Guest(tmp_path)
        self.disk = tmp_path / "work.ext4"
        self.top = tmp_path / "disk"
        self.read = 0
        self.service = WorkspaceService(
            str(tmp_path / "work"),
            stage_guest=stage_guest,
            stage_disk=partial(stage_disk, read_disk=self._read),
        )
        self.workspace = Workspace(
            vm_id=VM,
            repo_root="/home/user/it",
            repo_name="it",
            guest_path="/root/repo",
            mode="shallow_overlay",
            base_commit=self.guest.brought.base_commit,
            brought_commit=self.guest.brought.brought_commit,
            branch_name="main",
            prepared_at=now(),
        )
        self.record = VMRecord(
            id=VM,
            name="calm-otter",
            image_id="i",
            state=VMState.STOPPED,
            created_at=now(),
            updated_at=now(),
            last_touched_at=now(),
            spec=VMSpec(),
            runtime=VMRuntime(vm_dir=str(tmp_path), work_disk_path=str(self.disk)),
            workspace=self.workspace,
        )

    async def _read(self, disk: str, inner_path: str, out: BinaryIO) -> tuple[str, ...]:
        self.read += 1
        return await DiskFolders(_programs).read(disk, inner_path, out)

    def die(self) -> None:
        subprocess.run(
            ["cp", "-a", self.guest.folder, self.top / "repo"], check=True, timeout=60, capture_output=True
        )
        image(self.disk.parent, self.top)


async def _programs() -> E2fsprogs:
    return E2fsprogs()


@pytest.fixture
async def dead(tmp_path: Path) -> Dead:
    made = Dead(tmp_path)
    await made.service.open()
    await made.service.bring(made.record, made.workspace, refs=made.guest.brought.refs)
    return made


async def test_all_of_it_and_once(dead: Dead) -> None:
    commit = dead.guest.commit("work", a="w\n")
    dead.guest.write("new", "new\n")
    dead.die()
    replace_through_journal(dead.disk, b"new\n\0", b"NEW\n\0")
    work = await dead.service.keep_disk(dead.record)
    assert (work.how, work.head, work.notes) == ("disk", commit, ())
    assert {ref.name for ref in work.refs} == {"HEAD", "heads/main", "worktree"}
    patch = b"".join([chunk async for chunk in dead.service.patch(VM)])
    assert b"+NEW" in patch
    # the replay wrote the disk: that is not taken for new work
    assert await dead.service.keep_disk(dead.record) == work
    assert dead.read == 1
    assert not [name for name in os.listdir(dead.disk.parent / "work") if name != VM]


async def test_a_crash_in_mid_commit(dead: Dead) -> None:
    before = dead.guest.commit("flushed", a="flushed\n")
    after = dead.guest.commit("torn", a="torn\n", c="c\n")
    (dead.guest.folder / ".git/objects" / after[:2] / after[2:]).unlink()
    (dead.guest.folder / ".git/index").write_bytes(b"")
    dead.die()
    work = await dead.service.keep_disk(dead.record)
    refs = {ref.name: ref.commit for ref in work.refs}
    assert refs["heads/main"] == work.head == before
    assert "worktree" in refs
    assert any("never reached the disk" in note for note in work.notes)
    patch = b"".join([chunk async for chunk in dead.service.patch(VM)])
    assert b"+torn" in patch
    assert b"+++ b/c" in patch


@pytest.mark.parametrize("harm", ["sif /repo block[0] 7", "sif / mode 0"])
async def test_a_disk_that_cannot_be_read_is_no_empty_work(dead: Dead, harm: str) -> None:
    dead.guest.commit("work", a="w\n")
    dead.die()
    debugfs(dead.disk, f"{harm}\n")
    with pytest.raises(WorkNotKept):
        await dead.service.keep_disk(dead.record)


async def test_names_that_git_does_not_take(dead: Dead) -> None:
    for name in (".GIT", "git~1", "sub/.Git"):
        (dead.guest.folder / name).mkdir(parents=True)
        (dead.guest.folder / name / "config").write_text("[core]\n")
    os.symlink("/etc/passwd", dead.guest.folder / ".gitmodules")
    (dead.guest.folder / "empty").mkdir()
    git(dead.guest.folder / "empty", "init", "-q")
    dead.guest.write("fine", "fine\n")
    dead.die()
    work = await dead.service.keep_disk(dead.record)
    assert [ref.name for ref in work.refs if "/" not in ref.name] == ["worktree"]
    patch = b"".join([chunk async for chunk in dead.service.patch(VM)])
    assert b"+++ b/fine" in patch
    assert b"passwd" not in patch
    assert sum("git cannot track" in note for note in work.notes) == 4
