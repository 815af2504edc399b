"""A guest that plants what would hurt a host, or answers nonsense: refused, and the store is as before."""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from collections.abc import Mapping
from hashlib import sha1
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banger.workspace.errors import GitFailed, WorkNotKept
from banger.workspace.hostrepository import HostRepository
from banger.workspace.names import MAX_LENGTH, kept_name, spelled, untangled
from banger.workspace.repository import MOST, GitResult
from tests.unit.workspace.guestgit import ENV, Guest, Kept, git

pytestmark = pytest.mark.anyio


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def plant(folder: Path, kind: str, content: bytes) -> str:
    """An object as no git would make it."""
    raw = f"{kind} {len(content)}\0".encode() + content
    identifier = sha1(raw, usedforsecurity=False).hexdigest()
    path = folder / ".git/objects" / identifier[:2] / identifier[2:]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zlib.compress(raw))
    return identifier


@pytest.mark.parametrize("name", [b".git", b"..", b".GIT", b"git~1", b".", b"a/b"])
async def test_trees_that_lead_elsewhere(guest: Guest, kept: Kept, name: bytes) -> None:
    good = guest.commit("good", g="g\n")
    await kept.keep(guest.live(), guest.brought)
    refs = await kept.store.refs()
    blob = plant(guest.folder, "blob", b"[core]\n")
    tree = plant(guest.folder, "tree", b"100644 " + name + b"\0" + bytes.fromhex(blob))
    evil = git(guest.folder, "commit-tree", tree, "-p", good, "-m", "evil")
    guest.git("update-ref", "refs/heads/evil", evil)
    with pytest.raises(WorkNotKept, match="objects are refused"):
        await kept.keep(guest.live(), guest.brought)
    assert await kept.store.refs() == refs
    assert not list(kept.folder.glob("incoming-*"))


async def test_submodule_urls_that_are_options(guest: Guest, kept: Kept) -> None:
    guest.write(".gitmodules", '[submodule "x"]\n\tpath = x\n\turl = -u./payload\n')
    guest.commit("evil")
    with pytest.raises(WorkNotKept, match="objects are refused"):
        await kept.keep(guest.live(), guest.brought)
    assert await kept.store.refs() == {}


async def test_old_but_honest_history_is_not_refused(guest: Guest, kept: Kept) -> None:
    tree = guest.git("rev-parse", "HEAD^{tree}")
    content = f"tree {tree}\nparent {guest.brought.base_commit}\n".encode()
    content += b"author A <a@example.org 1234 +051800\ncommitter A <a@example.org> 01234 +051800\n\nold\n"
    content = content.replace(b"a@example.org 1234", b"a@example.org> 1234")
    old = plant(guest.folder, "commit", content)
    guest.git("update-ref", "refs/heads/old", old)
    await kept.keep(guest.live(), guest.brought)
    assert (await kept.current())["heads/old"] == old


class Lying(HostRepository):
    """A guest whose git says what it is told to for some commands."""

    answers: Mapping[str, GitResult] = {}

    async def git(
        self,
        *argv: str,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        most: int = MOST,
    ) -> GitResult:
        for command, answer in self.answers.items():
            if command in argv:
                return answer
        return await super().git(*argv, stdin=stdin, env=env, most=most)


@pytest.mark.parametrize(
    ("command", "stdout"),
    [
        ("for-each-ref", b" nonsense refs/heads/a\n"),
        ("for-each-ref", b"*" + b"1" * 40 + b" refs/heads/a\n" + b" HEAD refs/heads/b\n"),
        ("for-each-ref", b"1" * 40 + b" refs/heads/a\n"),
        ("cat-file", b"one\ntwo\nthree\n"),
        ("cat-file", b""),
        ("ls-files", b"H 100644\tx\0"),
        ("write-tree", b"--output=/etc/passwd\n"),
        ("commit-tree", b"f" * 41 + b"\n"),
        ("diff-tree", b"::::\0x\0"),
        ("diff-tree", b"%b %b\n::::\0x\0:1 2 3\0y\0" % (b"1" * 40, b"2" * 40)),
        ("rev-list", b"^--all\n"),
        ("rev-list", b"1" * 40 + b" --all\n"),
    ],
)
async def test_nonsense(guest: Guest, kept: Kept, tmp_path: Path, command: str, stdout: bytes) -> None:
    guest.commit("work", a="w\n")
    guest.write("a", "dirty\n")
    lying = Lying(str(guest.folder / ".git"), str(guest.folder), scratch=str(tmp_path / "scratch"))
    lying.answers = {command: GitResult(0, stdout, "")}
    with pytest.raises((GitFailed, WorkNotKept)):
        await kept.keep(lying, guest.brought)
    assert await kept.store.refs() == {}


async def test_commits_that_are_not_sent(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    """Every id is a right one, but the pack is of something else."""
    guest.commit("work", a="w\n")

    class Withholding(HostRepository):
        async def git_to(
            self, sink: BinaryIO, *argv: str, stdin: bytes | None = None, most: int
        ) -> GitResult:
            return await super().git_to(sink, "pack-objects", "--stdout", "-q", stdin=b"", most=most)

    there = Withholding(str(guest.folder / ".git"), str(guest.folder), scratch=str(tmp_path / "scratch"))
    with pytest.raises(WorkNotKept, match="did not send it"):
        await kept.keep(there, guest.brought)
    assert await kept.store.refs() == {}


async def test_half_of_a_history(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    first = guest.commit("first", a="1\n")
    second = guest.commit("second", a="2\n")

    class Halving(HostRepository):
        async def git_to(
            self, sink: BinaryIO, *argv: str, stdin: bytes | None = None, most: int
        ) -> GitResult:
            lines = f"{second}\n^{first}\n".encode()
            return await super().git_to(
                sink, "pack-objects", "--revs", "--stdout", "-q", stdin=lines, most=most
            )

    there = Halving(str(guest.folder / ".git"), str(guest.folder), scratch=str(tmp_path / "scratch"))
    with pytest.raises(WorkNotKept):
        await kept.keep(there, guest.brought)
    assert await kept.store.refs() == {}


async def test_pack_that_is_too_large(guest: Guest, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    (guest.folder / "large").write_bytes(os.urandom(1 << 20))
    monkeypatch.setattr("banger.workspace.packs.MOST_PACK", 1 << 19)
    with pytest.raises(GitFailed, match="said more than"):
        await kept.keep(guest.live(), guest.brought)
    assert await kept.store.refs() == {}
    assert not list(kept.folder.glob("incoming-*"))


async def test_too_many_refs(guest: Guest, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banger.workspace.snapshot.MAX_TIPS", 5)
    for number in range(6):
        guest.git("branch", f"b{number}")
    with pytest.raises(GitFailed, match="more than 5 refs"):
        await kept.keep(guest.live(), guest.brought)


async def test_refs_outside_their_own(guest: Guest, kept: Kept) -> None:
    """Refs that would be ours get names of their own."""
    for ref in ("refs/index", "refs/worktree", "refs/old/x/y", "refs/sub/z/HEAD", "refs/HEAD"):
        guest.git("update-ref", ref, "HEAD")
    guest.git("update-ref", "refs/remotes/origin/main", "HEAD")
    await kept.keep(guest.live(), guest.brought)
    assert await kept.names() == {
        "other/index", "other/worktree", "other/old/x/y", "other/sub/z/HEAD", "other/HEAD"
    }  # fmt: skip


async def test_configuration_of_staged_files_is_not_read(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n")
    script.chmod(0o755)
    guest.write(".gitattributes", "* filter=evil diff=evil merge=evil\n")
    for name, value in {
        "core.fsmonitor": str(script),
        "core.hooksPath": str(tmp_path),
        "core.worktree": "/",
        "core.attributesFile": "/etc/passwd",
        "filter.evil.clean": str(script),
        "filter.evil.process": str(script),
        "diff.evil.command": str(script),
        "diff.external": str(script),
        "include.path": str(tmp_path / "more"),
        "uploadpack.packObjectsHook": str(script),
        "core.sshCommand": str(script),
        "gpg.program": str(script),
        "core.alternateRefsCommand": str(script),
    }.items():
        guest.git("config", name, value)
    for hook in ("post-index-change", "reference-transaction", "pre-auto-gc"):
        path = guest.folder / ".git/hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(script.read_text())
        path.chmod(0o755)
    (guest.folder / ".git/objects/info").mkdir(exist_ok=True)
    (guest.folder / ".git/objects/info/alternates").write_text("/somewhere/else\n")
    guest.write("a", "dirty\n")
    await kept.keep(await guest.repository(tmp_path), guest.brought)
    assert kept.files()["a"] == "dirty"
    async for _ in kept.store.patch(guest.brought.base_commit, "refs/work/worktree"):
        pass
    assert not ran.exists()


async def test_links_in_a_staged_git_folder(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    """What a link in it shows is not the guest's."""
    (tmp_path / "hosts").mkdir()
    other = Guest(tmp_path / "hosts")
    secret = other.commit("of the host's", top="secret\n")
    for name in ("objects/pack", "refs/tags", "logs"):
        path = guest.folder / ".git" / name
        if path.exists():
            shutil.rmtree(path)
        path.symlink_to(other.folder / ".git" / name)
    (guest.folder / ".git/refs/heads/linked").symlink_to(other.folder / ".git/refs/heads/main")
    (guest.folder / ".git/packed-refs").symlink_to("/etc/passwd")
    guest.write("a", "dirty\n")
    await kept.keep(await guest.repository(tmp_path), guest.brought)
    assert set(await kept.current()) == {"worktree"}
    assert secret not in set((await kept.store.refs()).values())


async def test_damaged_lines_of_packed_refs(guest: Guest, kept: Kept, tmp_path: Path) -> None:
    """One of them, and git shows no ref at all: the others' commits would not be kept."""
    work = guest.commit("work", a="w\n")
    guest.git("tag", "-a", "-m", "v1", "v1")
    guest.git("pack-refs", "--all")
    packed = guest.folder / ".git/packed-refs"
    for bad in ("refs/heads/../../config", "refs/heads/x.lock", "refs/heads/a b", "HEAD", "refs/heads/a/"):
        packed.write_text(f"{packed.read_text()}{work} {bad}\n^{work}\nnonsense\n")
    snapshot = await kept.keep(await guest.repository(tmp_path), guest.brought)
    assert any("10 of its lines" in note for note in snapshot.notes)
    assert set(await kept.current()) == {"HEAD", "heads/main", "tags/v1"}
    assert (await kept.current())["heads/main"] == work


def test_names() -> None:
    assert kept_name(b"refs/heads/main") == "heads/main"
    assert kept_name(b"refs/heads/caf\xc3\xa9") == "heads/caf\u00e9"
    assert kept_name(b"refs/heads/bad\xff") == "heads/bad%FF"
    assert kept_name("refs/heads/\u202eevil".encode()) == "heads/%E2%80%AEevil"
    assert kept_name(b"refs/heads/100%25") == "heads/100%2525"
    assert kept_name(b"refs/heads/100%") == "heads/100%"
    assert kept_name(b"refs/stash") == "stash"
    assert kept_name(b"refs/stash/1") == "other/stash/1"
    assert kept_name(b"refs/heads") == "other/heads"
    assert kept_name(b"refs/remotes/origin/main") is None
    assert kept_name(b"HEAD") is None


def test_untangled() -> None:
    assert untangled([("a", "1"), ("a/b", "2")]) == {"a": "1", "a%2Fb-3": "2"}
    assert untangled([("a", "1"), ("a", "2")]) == {"a": "1", "a-2": "2"}
    assert set(untangled([("a/b", "1"), ("a", "2"), ("a/b", "3")]).values()) == {"1", "2", "3"}


async def test_pack_whose_delta_claims_more_than_there_is(guest: Guest, kept: Kept) -> None:
    """git would allocate what the delta says; it is ended by its limit, and the rest of the host is not."""
    base = guest.git("rev-parse", "HEAD:a")
    size = len(guest.git("cat-file", "blob", base)) + 1
    claimed = 1 << 40
    delta = _varint(size) + _varint(claimed) + b"\x90\x01"
    body = b"PACK" + (2).to_bytes(4, "big") + (1).to_bytes(4, "big")
    body += _pack_header(7, len(delta)) + bytes.fromhex(base) + zlib.compress(delta)
    pack = body + sha1(body, usedforsecurity=False).digest()

    class Bombing(HostRepository):
        async def git_to(
            self, sink: BinaryIO, *argv: str, stdin: bytes | None = None, most: int
        ) -> GitResult:
            del argv, stdin, most
            sink.write(pack)
            sink.flush()
            return GitResult(0, b"", "")

    guest.commit("work", w="w\n")
    await kept.keep(guest.live(), guest.brought)
    refs = await kept.store.refs()
    guest.commit("more", w="x\n")
    scratch = str(guest.folder.with_name("scratch"))
    with pytest.raises(WorkNotKept, match="objects are refused"):
        await kept.keep(
            Bombing(str(guest.folder / ".git"), str(guest.folder), scratch=scratch), guest.brought
        )
    assert await kept.store.refs() == refs


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _pack_header(kind: int, size: int) -> bytes:
    first = kind << 4 | size & 15
    size >>= 4
    return bytes([first | 0x80]) + _varint(size) if size else bytes([first])


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_any_bytes_make_a_ref(parts: list[bytes]) -> None:
    names = untangled((f"heads/{spelled(part)}", str(number)) for number, part in enumerate(parts))
    assert sorted(map(int, names.values())) == list(range(len(parts)))
    for name in names:
        assert name.isprintable()
        assert len(name) <= MAX_LENGTH
        assert all(len(component.encode()) < 250 for component in name.split("/"))
        ended = subprocess.run(["git", "check-ref-format", f"refs/work/{name}"], env=ENV, check=False)
        assert not ended.returncode, name
