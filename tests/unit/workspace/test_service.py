"""WorkspaceService: which way the work is kept, what is said of it, and what a crash leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec import structs

from banger.errors import BangerError, ErrorCode
from banger.model.records import VMRecord, VMRuntime, VMSpec, Workspace, now
from banger.model.states import VMState
from banger.workspace.errors import WorkNotKept
from banger.workspace.hostrepository import HostRepository
from banger.workspace.service import Staged, StageGuest, WorkspaceService
from tests.unit.workspace.guestgit import Guest, git

pytestmark = pytest.mark.anyio
VM = "ab" * 32


class Place:
    """A guest, its record, and the service with stages that copy a local folder."""

    def __init__(self, tmp_path: Path, vm_dir: Path) -> None:
        self.guest = Guest(tmp_path)
        self.disk = tmp_path / "work.ext4"
        self.disk.write_bytes(b"1")
        self.staged = 0
        self.broken: BangerError | None = None
        self.work_dir = tmp_path / "work"
        self.service = WorkspaceService(
            str(self.work_dir), stage_guest=self.stage("guest-files"), stage_disk=self.stage("disk")
        )
        self.workspace = Workspace(
            vm_id=VM,
            repo_root="/home/user/it",
            repo_name="it",
            guest_path=str(self.guest.folder),
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
            state=VMState.RUNNING,
            created_at=now(),
            updated_at=now(),
            last_touched_at=now(),
            spec=VMSpec(),
            runtime=VMRuntime(vm_dir=str(vm_dir), work_disk_path=str(self.disk)),
            workspace=self.workspace,
        )

    def stage(self, how: str) -> StageGuest:
        async def copy(_source: str, path: str, folder: str) -> Staged:
            self.staged += 1
            if self.broken is not None:
                raise self.broken
            if not self.guest.folder.exists():
                raise BangerError(ErrorCode.NOT_FOUND, "no such folder")
            tree, own = Path(folder) / "tree", Path(folder) / "own"
            shutil.copytree(self.guest.folder, tree, symlinks=True)
            own.mkdir()
            repository = await HostRepository.adopt(str(tree), str(own), how=how)
            return Staged(repository, ("A socket was left out.",))

        return copy

    async def bring(self) -> None:
        await self.service.bring(self.record, self.workspace, refs=self.guest.brought.refs)

    @property
    def folder(self) -> Path:
        return self.work_dir / VM


@pytest.fixture
async def place(tmp_path: Path, vm_dir: Path) -> Place:
    place = Place(tmp_path, vm_dir)
    await place.service.open()
    await place.bring()
    return place


async def test_live_by_the_guests_git(place: Place) -> None:
    work = await place.service.keep_live(place.record)
    assert (work.how, work.changed, work.refs) == ("guest-git", False, ())
    assert work.kept_at is not None
    commit = place.guest.commit("work \x1b[31mred", a="w\n")
    place.guest.write("new", "n\n")
    work = await place.service.keep_live(place.record)
    assert work.changed
    assert {ref.name for ref in work.refs} == {"HEAD", "heads/main", "worktree"}
    assert work.head == commit
    assert work.refs[0].subject == "work \x1b[31mred"
    assert (work.changes.ahead, work.changes.untracked) == (1, 1)
    assert work.cut == (place.guest.brought.base_commit,)
    assert place.staged == 0
    assert place.service.list() == [work]


async def test_live_by_files_where_git_does_not_do(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.guest.commit("work", a="w\n")
    monkeypatch.setattr("banger.workspace.guestrepository.GIT", "git-that-is-not-there")
    work = await place.service.keep_live(place.record)
    assert work.how == "guest-files"
    assert work.notes == ("A socket was left out.",)
    assert work.head in {ref.commit for ref in work.refs}
    assert os.listdir(place.work_dir) == [VM], "staging is gone"


async def test_live_by_files_where_the_agent_is_older(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banger.guest.copyin.FEATURE", "copy-of-later")
    place.guest.commit("work", a="w\n")
    work = await place.service.keep_live(place.record)
    assert work.how == "guest-files"
    assert {ref.name for ref in work.refs} == {"HEAD", "heads/main"}
    assert any("older" in note for note in work.notes)


async def test_live_with_a_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest's git that cannot write objects: its files are copied."""
    from banger.workspace.guestrepository import GuestRepository

    place.guest.write("a", "dirty\n")
    real = GuestRepository.git

    async def full(self: GuestRepository, *argv: str, **more: object) -> object:
        if "add" in argv:
            from banger.workspace.repository import GitResult

            return GitResult(1, b"", "error: unable to create temporary file: No space left on device")
        return await real(self, *argv, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(GuestRepository, "git", full)
    work = await place.service.keep_live(place.record)
    assert work.how == "guest-files"
    assert [ref.name for ref in work.refs] == ["worktree"]
    assert any("No space left" in note for note in work.notes)


async def test_branch_of_any_bytes_can_be_said(place: Place) -> None:
    place.guest.git("checkout", "-q", "-b", os.fsdecode(b"caf\xe9"))
    place.guest.commit("work", a="w\n")
    work = await place.service.keep_live(place.record)
    assert work.branch == "caf%E9"
    assert "heads/caf%E9" in {ref.name for ref in work.refs}
    assert place.service.find(VM) == work


async def test_live_and_disk_agree(place: Place) -> None:
    place.guest.commit("work", a="w\n")
    place.guest.write("new", "n\n")
    live = await place.service.keep_live(place.record)
    disk = await place.service.keep_disk(place.record)
    assert disk.how == "disk"
    assert disk.refs == live.refs


async def test_disk_that_was_not_written_is_not_read_again(place: Place) -> None:
    place.guest.write("secret", "s\n")
    (place.guest.folder / ".git/info").mkdir(exist_ok=True)
    (place.guest.folder / ".git/info/exclude").write_text("secret\n")
    first = await place.service.keep_disk(place.record)
    assert await place.service.keep_disk(place.record) == first
    assert place.staged == 1
    with_ignored = await place.service.keep_disk(place.record, ignored=True)
    assert place.staged == 2
    assert [ref.name for ref in with_ignored.refs] == ["worktree"]
    assert await place.service.keep_disk(place.record) == with_ignored
    os.utime(place.disk, ns=(1, 1))
    await place.service.keep_disk(place.record)
    assert place.staged == 3


async def test_history_that_is_refused_leaves_the_files(place: Place) -> None:
    place.guest.write(".gitmodules", '[submodule "x"]\n\tpath = x\n\turl = -u./payload\n')
    place.guest.commit("evil")
    place.guest.write("a", "dirty\n")
    with pytest.raises(WorkNotKept):  # the planted file is in the work tree as well
        await place.service.keep_disk(place.record)
    place.guest.git("rm", "-q", "-f", ".gitmodules")
    work = await place.service.keep_disk(place.record)
    assert [ref.name for ref in work.refs] == ["worktree"]
    assert any("history cannot be kept" in note for note in work.notes)
    assert "gitmodules" in work.files_only
    shutil.rmtree(place.guest.folder / ".git")
    os.utime(place.disk, ns=(1, 1))
    assert not (await place.service.keep_disk(place.record)).files_only, "there is none to lose any more"


async def test_damaged_history_leaves_the_files(place: Place) -> None:
    commit = place.guest.commit("work", a="w\n")
    place.guest.commit("more", a="m\n")
    (place.guest.folder / ".git/objects" / commit[:2] / commit[2:]).unlink()
    place.guest.write("a", "dirty\n")
    work = await place.service.keep_live(place.record)
    assert [ref.name for ref in work.refs] == ["worktree"]
    assert any("history cannot be kept" in note for note in work.notes)
    assert work.files_only
    assert place.service.find(VM).files_only == work.files_only
    shown = git(place.folder / "repo.git", "show", "refs/work/worktree:a")
    assert shown == "dirty"


async def test_nothing_works(place: Place) -> None:
    place.guest.commit("work", a="w\n")
    await place.service.keep_live(place.record)
    before = place.service.find(VM)
    place.broken = WorkNotKept("the disk is damaged")
    os.utime(place.disk, ns=(1, 1))
    with pytest.raises(WorkNotKept, match="calm-otter could not be kept: the disk is damaged") as caught:
        await place.service.keep_disk(place.record)
    assert caught.value.hint is not None
    assert "--discard-work calm-otter" in caught.value.hint
    assert place.service.find(VM) == before


async def test_workspace_that_is_gone_in_the_guest(place: Place) -> None:
    place.guest.commit("work", a="w\n")
    before = await place.service.keep_live(place.record)
    shutil.rmtree(place.guest.folder)
    for keep in (place.service.keep_live, place.service.keep_disk):
        work = await keep(place.record)
        assert work.refs == before.refs
        assert any("is gone in the guest" in note for note in work.notes)


async def test_prepared_again(place: Place) -> None:
    first = place.guest.commit("work", a="w\n")
    await place.service.keep_live(place.record)
    place.guest.git("reset", "-q", "--hard", place.guest.brought.base_commit)
    place.guest.commit("from the user", u="u\n")
    place.guest.prepare()
    place.workspace = structs.replace(
        place.workspace,
        base_commit=place.guest.brought.base_commit,
        brought_commit=place.guest.brought.brought_commit,
    )
    place.record = structs.replace(place.record, workspace=place.workspace)
    await place.bring()
    work = place.service.find("calm-otter")
    assert first in {ref.commit for ref in work.refs}
    assert all(ref.name.startswith("old/") for ref in work.refs)
    assert work.kept_at is None
    kept = await place.service.keep_live(place.record)
    assert kept.refs == work.refs or {ref.name[:4] for ref in kept.refs} == {"old/", "refl"}


async def test_vm_gone_and_forget(place: Place) -> None:
    await place.service.keep_live(place.record)
    assert await place.service.vm_gone(VM) is None
    assert os.listdir(place.work_dir) == []
    await place.bring()
    place.guest.commit("work", a="w\n")
    work = await place.service.keep_live(place.record)
    assert await place.service.vm_gone(VM) == work
    assert place.service.find("calm-otter") == work
    await place.service.forget(VM)
    await place.service.forget(VM)
    assert os.listdir(place.work_dir) == []
    with pytest.raises(BangerError, match="no kept work is called"):
        place.service.find("calm-otter")


async def test_find_prefers_the_vm_that_is_there_then_the_newest(place: Place) -> None:
    ids = [character * 64 for character in "123"]
    for age, vm_id in enumerate(ids):
        workspace = structs.replace(place.workspace, prepared_at=now() - timedelta(hours=age))
        await place.service.bring(structs.replace(place.record, id=vm_id, name="twin"), workspace, refs={})
    assert place.service.find("twin").vm_id == ids[0]
    assert place.service.find("twin", existing=frozenset({ids[2]})).vm_id == ids[2]
    assert place.service.find("22").vm_id == ids[1]


async def test_pack_and_patch(place: Place, tmp_path: Path) -> None:
    user = tmp_path / "user"
    git(tmp_path, "clone", "-q", str(place.guest.folder), str(user))
    commit = place.guest.commit("work", a="w\n")
    place.guest.write("b", "unstaged\n")
    (place.guest.folder / "binary").write_bytes(bytes(range(256)))
    await place.service.keep_live(place.record)
    base = place.guest.brought.base_commit
    pack = b"".join([chunk async for chunk in place.service.pack(VM, [base, "0" * 40, "nonsense"])])
    git(user, "index-pack", "--stdin", "--fix-thin", "--strict", stdin=pack)
    for ref in place.service.find(VM).refs:
        git(user, "update-ref", f"refs/banger/calm-otter/{ref.name}", ref.commit)
    git(user, "fsck", "--strict", "--connectivity-only")
    assert git(user, "rev-parse", "refs/banger/calm-otter/heads/main") == commit
    whole = b"".join([chunk async for chunk in place.service.pack(VM, [])])
    assert len(whole) > len(pack)
    patch = b"".join([chunk async for chunk in place.service.patch(VM)])
    git(user, "apply", "--index", stdin=patch)
    assert (user / "binary").read_bytes() == bytes(range(256))
    assert (user / "b").read_text() == "unstaged\n"
    assert git(user, "write-tree") == git(user, "rev-parse", "refs/banger/calm-otter/worktree^{tree}")
    short = b"".join([chunk async for chunk in place.service.patch(VM, base=commit[:12])])
    assert b"unstaged" in short
    assert b"+w" not in short
    with pytest.raises(BangerError, match="is not in the work kept"):
        _ = [chunk async for chunk in place.service.patch(VM, base="f" * 40)]


async def test_patch_of_nothing(place: Place) -> None:
    await place.service.keep_live(place.record)
    assert [chunk async for chunk in place.service.patch(VM)] == []


async def test_patch_applies_to_the_users_dirty_tree(place: Place, tmp_path: Path) -> None:
    """What came from the host is not in it."""
    place.guest.write("a", "local\n")
    place.guest.prepare()
    user = tmp_path / "user"
    shutil.copytree(place.guest.folder, user)
    place.workspace = structs.replace(place.workspace, brought_commit=place.guest.brought.brought_commit)
    place.record = structs.replace(place.record, workspace=place.workspace)
    await place.bring()
    assert not (await place.service.keep_live(place.record)).changed
    place.guest.write("a", "local\nand the guest's\n")
    place.guest.git("commit", "-q", "-a", "-m", "all of it")
    await place.service.keep_live(place.record)
    patch = b"".join([chunk async for chunk in place.service.patch(VM)])
    git(user, "apply", stdin=patch)
    assert (user / "a").read_text() == "local\nand the guest's\n"


async def test_opened_after_a_crash(place: Place, tmp_path: Path) -> None:
    """Refs moved, and then nothing more; files on their way in; locks of a git that was ended."""
    first = place.guest.commit("work", a="w\n")
    await place.service.keep_live(place.record)
    said = (place.folder / "work.json").read_bytes()
    second = place.guest.commit("more", a="m\n")
    await place.service.keep_live(place.record)
    (place.folder / "work.json").write_bytes(said)
    (place.folder / "moving").touch()
    (place.folder / "incoming-1/objects").mkdir(parents=True)
    (place.folder / "repo.git/refs/work/heads/main.lock").touch()
    (place.folder / "repo.git/packed-refs.lock").touch()
    (place.work_dir / "staging-1/tree").mkdir(parents=True)
    again = WorkspaceService(
        str(place.work_dir), stage_guest=place.stage("guest-files"), stage_disk=place.stage("disk")
    )
    await again.open()
    assert second in {ref.commit for ref in again.find(VM).refs}
    assert os.listdir(place.work_dir) == [VM]
    assert not list(place.folder.rglob("*.lock"))
    assert sorted(os.listdir(place.folder)) == ["brought.json", "repo.git", "work.json"]
    third = place.guest.commit("and more", a="x\n")
    work = await again.keep_live(place.record)
    assert git(place.folder / "repo.git", "rev-list", "refs/work/heads/main").split()[:3] == [
        third,
        second,
        first,
    ]
    assert not any(ref.name.startswith("old/") for ref in work.refs)


async def test_cancelled_keep_leaves_the_store(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.guest.commit("work", a="w\n")
    before = await place.service.keep_live(place.record)
    place.guest.commit("more", a="m\n")
    from banger.workspace.packs import Incoming

    reached = asyncio.Event()

    async def stuck(_self: Incoming, _tips: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(Incoming, "check", stuck)
        task = asyncio.create_task(place.service.keep_live(place.record))
        await asyncio.wait_for(reached.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not list(place.folder.glob("incoming-*"))
    refs = git(place.folder / "repo.git", "for-each-ref", "--format=%(objectname)").split()
    assert set(refs) == {ref.commit for ref in before.refs} | {place.guest.brought.brought_commit}
    assert (await place.service.keep_live(place.record)).changes.ahead == 2


async def test_no_workspace_and_no_id(place: Place) -> None:
    with pytest.raises(BangerError, match="has no workspace"):
        await place.service.keep_live(structs.replace(place.record, workspace=None))
    with pytest.raises(BangerError, match="no VM's id"):
        await place.service.forget("../..")
