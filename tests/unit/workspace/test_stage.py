"""Real repositories, staged from real ext4 files and by the real agent: all is there, and none of it acts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.image.diskfolder import DiskFolders
from banger.image.initramfs import agent_binary
from banger.system import diskroom
from banger.system.ext4 import E2fsprogs
from banger.workspace import stage
from banger.workspace.service import Staged
from banger.workspace.stage import stage_disk, stage_guest, unpack
from tests.fakes.guestagent import end, serve_agent
from tests.unit.workspace.hostiletar import Entry, tar_of

pytestmark = pytest.mark.anyio

TOOLS = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
GIT = {
    **TOOLS,
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, env=GIT, check=True, capture_output=True, timeout=60)
    return done.stdout.decode().rstrip("\n")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """One commit in a pack, one loose, a branch, a stash, and all kinds of changes."""
    made = tmp_path / "disk/repo"
    made.mkdir(parents=True)
    git(made, "init", "-q", "-b", "main")
    for name in ("kept", "staged", "changed", "gone"):
        (made / name).write_text(f"{name}\n" * 50)
    git(made, "add", ".")
    git(made, "commit", "-q", "-m", "first")
    git(made, "gc", "-q")
    git(made, "branch", "side")
    (made / "more").write_text("more\n")
    git(made, "add", ".")
    git(made, "commit", "-q", "-m", "second")
    (made / "kept").write_text("stashed\n")
    git(made, "stash")
    (made / "staged").write_text("staged\n")
    git(made, "add", "staged")
    (made / "changed").write_text("changed\n")
    (made / "gone").unlink()
    (made / "new").write_text("new\n")
    (made / "tool").write_text("#!/bin/sh\n")
    (made / "tool").chmod(0o755)
    (made / "link").symlink_to("/etc/passwd")
    return made


def image(folder: Path, top: Path) -> Path:
    """A work disk as seeds.py makes them, but smaller."""
    path = folder / "work.ext4"
    features = "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file"
    features += ",dir_nlink,extra_isize,metadata_csum,has_journal"
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", features, "-d", top, path, "64m"],
        check=True,
        env=TOOLS,
        capture_output=True,
        timeout=60,
    )
    return path


async def programs() -> E2fsprogs:
    return E2fsprogs()


async def no_programs() -> E2fsprogs:
    raise AssertionError("a clean disk needs none")


def staging(folder: Path) -> str:
    made = folder / "incoming"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(0o700)
    return str(made)


async def off_disk(disk: Path, tools: object = no_programs) -> Staged:
    reader = DiskFolders(programs if tools is programs else no_programs)
    return await stage_disk(str(disk), "repo", staging(disk.parent), read_disk=reader.read)


async def asked(staged: Staged, *words: str) -> str:
    done = await staged.repository.git(*words)
    assert done.status == 0, done.stderr
    return done.stdout.decode().rstrip("\n")


async def check_same(staged: Staged, repo: Path) -> None:
    assert staged.notes == ()
    for words in (
        ("rev-parse", "HEAD", "main", "side", "refs/stash"),
        ("symbolic-ref", "HEAD"),
        ("ls-files", "-s"),
        ("status", "--porcelain=v1", "-uall"),
        ("diff", "--binary", "--no-ext-diff"),
        ("log", "--format=%H %s", "--all"),
    ):
        assert await asked(staged, *words) == git(repo, *words), words
    assert (await staged.repository.git("fsck", "--strict")).status == 0


async def test_a_clean_disk(repo: Path, tmp_path: Path) -> None:
    before = (disk := image(tmp_path, tmp_path / "disk")).stat().st_mtime_ns
    staged = await off_disk(disk)
    assert staged.repository.how == "disk"
    await check_same(staged, repo)
    assert disk.stat().st_mtime_ns == before
    assert sorted(os.listdir(tmp_path / "incoming")) == ["own", "tree"]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "vm").mkdir()
    running = serve_agent(str(agent_binary()), tmp_path / "vm")
    yield tmp_path / "vm"
    end(running)


async def test_a_running_guest(repo: Path, tmp_path: Path, agent: Path) -> None:
    staged = await stage_guest(str(agent), str(repo), staging(tmp_path))
    assert staged.repository.how == "guest-files"
    await check_same(staged, repo)


async def test_no_workspace_there(repo: Path, tmp_path: Path, agent: Path) -> None:
    with pytest.raises(BangerError) as guest:
        await stage_guest(str(agent), f"{repo}/missing", staging(tmp_path))
    repo.rename(tmp_path / "disk/other")
    with pytest.raises(BangerError, match="no workspace") as disk:
        await off_disk(image(tmp_path, tmp_path / "disk"))
    with pytest.raises(BangerError, match="no work disk") as nothing:
        await off_disk(tmp_path / "missing.ext4")
    assert {error.value.code for error in (guest, disk, nothing)} == {ErrorCode.NOT_FOUND}


def debugfs(disk: Path, script: str) -> str:
    """What it says, its prompts included."""
    done = subprocess.run(
        ["debugfs", "-w", "-f", "-", disk],
        input=script.encode(),
        check=True,
        env=TOOLS,
        capture_output=True,
        timeout=60,
    )
    return done.stdout.decode()


def replace_through_journal(disk: Path, old: bytes, new: bytes) -> None:
    """As a guest that was killed leaves it: the new block is in the journal alone."""
    content = disk.read_bytes()
    place = content.index(old)
    block = place // 4096
    whole = content[block * 4096 : (block + 1) * 4096].replace(old, new)
    (disk.parent / "block").write_bytes(whole)
    script = f"jo\njw -b {block} {disk.parent / 'block'}\njc\n"
    debugfs(disk, script)
    assert disk.read_bytes()[block * 4096 : (block + 1) * 4096].count(old)


async def test_what_is_only_in_the_journal(repo: Path, tmp_path: Path) -> None:
    disk = image(tmp_path, tmp_path / "disk")
    replace_through_journal(disk, b"changed\n\0", b"journal\n\0")
    staged = await off_disk(disk, programs)
    assert staged.notes == ()
    assert (tmp_path / "incoming/tree/changed").read_bytes() == b"journal\n"
    assert "+journal" in await asked(staged, "diff", "changed")
    # and again: nothing is left to replay
    await off_disk(disk)


async def test_a_damaged_journal_is_said(repo: Path, tmp_path: Path) -> None:
    disk = image(tmp_path, tmp_path / "disk")
    replace_through_journal(disk, b"changed\n\0", b"journal\n\0")
    first = int(debugfs(disk, "blocks <8>").splitlines()[1].split()[0])
    with disk.open("r+b") as file:
        file.seek(first * 4096)
        file.write(b"\xff" * 4096)
    staged = await off_disk(disk, programs)
    assert any("journal" in note for note in staged.notes)
    assert await asked(staged, "rev-parse", "main") == git(repo, "rev-parse", "main")


async def test_a_damaged_file_system_gives_the_rest(repo: Path, tmp_path: Path) -> None:
    (repo / "torn").mkdir()
    (repo / "torn/below").write_text("x\n")
    disk = image(tmp_path, tmp_path / "disk")
    harm = "sif /repo/new block[0] 7\nsif /repo/torn block[0] 7\nsif /repo/tool mode 0\n"
    debugfs(disk, harm)
    staged = await off_disk(disk)
    assert len(staged.notes) == 3
    assert all("damaged" in note for note in staged.notes)
    assert {"repo/new", "repo/torn", "repo/tool"} == {note.split("'")[1] for note in staged.notes}
    assert (tmp_path / "incoming/tree/changed").read_bytes() == b"changed\n"
    assert await asked(staged, "log", "--format=%s") == "second\nfirst"


async def test_no_disk_at_all(tmp_path: Path) -> None:
    (tmp_path / "work.ext4").write_bytes(bytes(1 << 20))
    with pytest.raises(BangerError) as caught:
        await off_disk(tmp_path / "work.ext4")
    assert caught.value.code is ErrorCode.IMAGE_INVALID


async def test_a_hostile_git_folder_does_nothing(repo: Path, tmp_path: Path) -> None:
    """Whatever could make git run or read something: none of it does."""
    secret = tmp_path / "secret"
    secret.mkdir()
    git(secret, "init", "-q")
    (secret / "s").write_text("secret of the host\n")
    git(secret, "add", ".")
    blob = git(secret, "hash-object", "s")
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\necho ran >> {tmp_path}/ran\n")
    trap.chmod(0o755)
    config = repo / ".git/config"
    config.write_text(
        config.read_text()
        + f"""
[core]
    fsmonitor = {trap}
    hooksPath = {tmp_path}
    sshCommand = {trap}
    worktree = {secret}
    attributesFile = {secret}/s
[filter "x"]
    clean = {trap}
    smudge = {trap}
    process = {trap}
    required = true
[diff "x"]
    textconv = {trap}
    command = {trap}
[include]
    path = {secret}/.git/config
[extensions]
    worktreeConfig = true
"""
    )
    (repo / ".gitattributes").write_text("* filter=x diff=x\n")
    for hook in ("pre-commit", "post-index-change", "reference-transaction", "post-checkout"):
        shutil.copy(trap, repo / ".git/hooks" / hook)
    (repo / ".git/objects/info/alternates").write_text(f"{secret}/.git/objects\n")
    (repo / ".git/refs/heads/out").symlink_to(secret / ".git/HEAD")
    (repo / ".git/refs/heads/evil").write_text(f"ref: ../../../../../..{secret}/.git/HEAD\n")
    (repo / "nested").mkdir()
    (repo / "nested/.git").write_text(f"gitdir: {secret}/.git\n")
    (repo / "nested/file").write_text("n\n")
    (repo / "linked").mkdir()
    (repo / "linked/.git").symlink_to(secret / ".git")

    staged = await off_disk(image(tmp_path, tmp_path / "disk"))
    repository = staged.repository
    for words in (("add", "-A"), ("commit", "-q", "-m", "x"), ("diff", "HEAD~1"), ("fsck",), ("gc", "-q")):
        await repository.git(*words)
    assert not (tmp_path / "ran").exists()
    assert (await repository.git("cat-file", "-e", blob)).status != 0
    assert (await repository.git("rev-parse", "--verify", "-q", "refs/heads/out")).status != 0
    assert await repository.sub(b"linked") is None
    nested = await repository.sub(b"nested")
    if nested is not None:
        assert (await nested.git("cat-file", "-e", blob)).status != 0
    said = await repository.git("log", "--all", "-p", "--text")
    assert b"secret of the host" not in said.stdout
    assert any("borrows" in note for note in staged.notes)


async def test_without_git_the_files_are_kept(repo: Path, tmp_path: Path) -> None:
    shutil.rmtree(repo / ".git")
    staged = await off_disk(image(tmp_path, tmp_path / "disk"))
    assert staged.repository.notes
    await asked(staged, "add", "-A")
    assert "changed" in await asked(staged, "ls-files")


async def test_submodules(repo: Path, tmp_path: Path) -> None:
    source = tmp_path / "lib"
    source.mkdir()
    git(source, "init", "-q")
    git(source, "commit", "-q", "--allow-empty", "-m", "of the library")
    git(repo, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(source), "deep/lib")
    (repo / "deep/lib/new").write_text("in the library\n")
    staged = await off_disk(image(tmp_path, tmp_path / "disk"))
    sub = await staged.repository.sub(b"deep/lib")
    assert sub is not None
    done = await sub.git("log", "--format=%s")
    assert done.stdout == b"of the library\n"
    assert b"new" in (await sub.git("status", "--porcelain")).stdout


@pytest.mark.parametrize("harm", ["sif /repo block[0] 7", "sif /repo mode 0", "sif / block[0] 7"])
async def test_damage_is_not_taken_for_an_empty_workspace(repo: Path, tmp_path: Path, harm: str) -> None:
    """A VM whose work cannot be read must not be deleted as one that had none."""
    disk = image(tmp_path, tmp_path / "disk")
    debugfs(disk, f"{harm}\n")
    with pytest.raises(BangerError) as caught:
        await off_disk(disk)
    assert caught.value.code is ErrorCode.IMAGE_INVALID


async def test_the_hosts_disk_is_not_filled(
    repo: Path, tmp_path: Path, agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guests write to it, too."""
    disk = image(tmp_path, tmp_path / "disk")
    monkeypatch.setattr(diskroom, "KEEP_FREE_BYTES", 1 << 62)
    with pytest.raises(BangerError) as off:
        await off_disk(disk)
    with pytest.raises(BangerError) as out:
        await stage_guest(str(agent), str(repo), staging(tmp_path))
    tar = tmp_path / "tar"
    tar.write_bytes(tar_of([Entry("./file", content=b"x")]))
    with pytest.raises(BangerError) as laid, tar.open("rb") as file:
        await unpack(file.fileno(), staging(tmp_path))
    assert {error.value.code for error in (off, out, laid)} == {ErrorCode.NO_SPACE}


async def test_a_guest_cannot_send_more_than_its_disk_has(
    repo: Path, tmp_path: Path, agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (agent / "work.ext4").write_bytes(bytes(1000))
    monkeypatch.setattr(stage, "SMALLEST", 10_000)
    with pytest.raises(BangerError, match="sends more than"):
        await stage_guest(str(agent), str(repo), staging(tmp_path))
