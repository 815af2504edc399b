"""Packs, refs and ids as hostile guests have them: nothing of the user's changes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from banger.local import gitpull, tempgit
from banger.local.kepttips import WorkRefused, read_kept, ref_fault
from tests.fakes.keptwork import commit, git_raw
from tests.unit.local.pulldesk import Desk, commit_of, objects, oid, pack_of, state, tree_of


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def planted(entry: bytes, parent: str, mode: bytes = b"100644") -> tuple[str, bytes]:
    """(the tip, a pack) of a commit whose tree has such an entry."""
    blob = b"[core]\n\tfsmonitor = touch /tmp/x\n"
    tree = tree_of(entry, oid("blob", blob), mode)
    made = commit_of(oid("tree", tree), parent)
    return oid("commit", made), pack_of((3, blob), (2, tree), (1, made))


def hostile(desk: Desk, tips: dict[str, str], pack: bytes, *, most_bytes: int = gitpull.MOST_BYTES) -> str:
    """Pull it: it must be refused, with the repository and the user's cache as they were. What was said."""
    commit(desk.guest, "good")
    desk.pull()
    before = state(desk.user), objects(desk.user), desk.refs()
    told = {**desk.work.work(), "refs": [{"name": n, "commit": c} for n, c in tips.items()]}

    def pieces(_have: Sequence[str]) -> Iterator[bytes]:
        for at in range(0, len(pack), 1000):
            yield pack[at : at + 1000]

    with pytest.raises(WorkRefused) as caught:
        gitpull.pull(read_kept(told), pieces, str(desk.user), account=desk.account, most_bytes=most_bytes)
    assert (state(desk.user), objects(desk.user), desk.refs()) == before
    assert os.listdir(tempgit.parent_folder(desk.account)) == []
    assert caught.value.brief.isprintable()
    return caught.value.brief


@pytest.mark.parametrize("entry", [b".git", b".GIT", b"git~1", b"..", b"a/b", ".g\u200cit".encode()])
def test_a_tree_with_such_an_entry_is_refused(desk: Desk, entry: bytes) -> None:
    tip, pack = planted(entry, desk.work.base)
    hostile(desk, {"heads/main": tip}, pack)


def test_gitmodules_as_a_link_is_refused(desk: Desk) -> None:
    tip, pack = planted(b".gitmodules", desk.work.base, b"120000")
    hostile(desk, {"heads/main": tip}, pack)


@pytest.mark.parametrize(
    "name",
    [
        "heads/../../x",
        "../heads/main",
        "/heads/main",
        "heads//x",
        "heads/x\ny",
        "heads/x\0y",
        "heads/x y",
        "heads/.x",
        "heads/x.lock",
        "heads/x.lock/y",
        "heads/x.",
        "heads/@{x",
        "heads/x~1",
        "@",
        "",
        "heads/" + "x" * 241,
        "x/" * 600 + "x",
        "heads/\x1b[31m",
        "-",  # a name as git allows it; only the object is missing
    ],
)
def test_such_a_ref_is_refused(desk: Desk, name: str) -> None:
    hostile(desk, {name: "12" * 20}, pack_of((3, b"x")))


@pytest.mark.parametrize("commit", ["", "1234", "g" * 40, "HEAD", "12" * 20 + "\n", "--all", "A" * 40])
def test_what_is_no_id_is_refused(desk: Desk, commit: str) -> None:
    hostile(desk, {"heads/main": commit}, pack_of((3, b"x")))


def test_names_in_each_others_way_are_refused(desk: Desk) -> None:
    hostile(desk, {"heads/a": "12" * 20, "heads/a/b": "12" * 20}, b"")


def test_too_many_refs_are_refused(desk: Desk) -> None:
    hostile(desk, {f"heads/x{number}": "12" * 20 for number in range(20_001)}, b"")


def test_missing_objects_are_refused(desk: Desk) -> None:
    made = commit_of("34" * 20, desk.work.base)
    hostile(desk, {"heads/main": oid("commit", made)}, pack_of((1, made)))


def test_a_missing_parent_is_refused(desk: Desk) -> None:
    blob = b"x"
    tree = tree_of(b"x", oid("blob", blob))
    made = commit_of(oid("tree", tree), "34" * 20)
    hostile(desk, {"heads/main": oid("commit", made)}, pack_of((3, blob), (2, tree), (1, made)))


def test_an_object_that_nothing_carries_is_refused(desk: Desk) -> None:
    hostile(desk, {"heads/main": "12" * 20}, pack_of((3, b"x")))


def test_a_pack_larger_than_it_may_be_is_refused(desk: Desk) -> None:
    tip, pack = planted(b"x", desk.work.base)
    pack = pack_of((3, os.urandom(2 << 20)))
    assert "larger than 1 MiB" in hostile(desk, {"heads/main": tip}, pack, most_bytes=1 << 20)


@pytest.mark.parametrize("kind", [1, 2])
def test_an_object_that_claims_all_memory_is_refused(desk: Desk, kind: int) -> None:
    hostile(desk, {"heads/main": "12" * 20}, pack_of((kind, b"x" * 1000), size=3 << 30))


@pytest.mark.parametrize("broken", ["short", "sum", "nothing"])
def test_a_pack_that_is_not_whole_is_refused(desk: Desk, broken: str) -> None:
    tip, pack = planted(b"x", desk.work.base)
    damaged = {"short": pack[:-30], "sum": pack[:-1] + bytes([pack[-1] ^ 1]), "nothing": b""}
    hostile(desk, {"heads/main": tip}, damaged[broken])


def test_ref_fault_agrees_with_git(tmp_path: Path) -> None:
    names = [
        "heads/x",
        "a/b/c",
        "old/20260101T000000Z/heads/é",
        "sub/a%20b/heads/x",
        "@x",
        "x@",
        "a@b",
        "HEAD",
        "-x",
    ]
    names += [
        "a..b",
        "a/./b",
        ".a",
        "a.",
        "a.lock",
        "a.lock/b",
        "a b",
        "a:b",
        "a\\b",
        "a[b",
        "a?b",
        "a*b",
        "a^b",
    ]
    names += [
        "a~b",
        "a\tb",
        "a\x7fb",
        "a@{b",
        "a//b",
        "/a",
        "a/",
        "{a}",
        'a"b',
        "a'b",
        "$(a)",
        "a;b",
        "%41",
        "@",
    ]
    for name in names:
        said = git_raw(tmp_path, "check-ref-format", f"refs/x/{name}").returncode
        if name != "@":  # `refs/x/@` is one to git; nothing of ours has that name
            assert (said == 0) == (ref_fault(name) == ""), name
