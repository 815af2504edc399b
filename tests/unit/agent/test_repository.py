"""A repository through the real agent: what the CLI brings is what git says of the source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from banger.client.copy import unpack_from
from banger.errors import BangerError, ErrorCode
from banger.local.gitsource import examine
from banger.local.gittravel import open_travel
from tests.unit.agent.conftest import Agent
from tests.unit.agent.copying import AgentsClient, leftovers, tree
from tests.unit.local.gitrepos import Repo, change, check_same, fingerprint, make, rich


@pytest.fixture
def client(agent: Agent) -> AgentsClient:
    return AgentsClient(agent)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is /root in a guest. No scratch folder is left beside it."""
    monkeypatch.setattr("banger.local.gittravel._place", lambda _account: str(tmp_path))
    made = tmp_path / "place"
    made.mkdir()
    return made


def test_all_of_it_arrives(client: AgentsClient, place: Path, tmp_path: Path) -> None:
    repo = rich(tmp_path)
    repo.write("private/key", "x", 0o600)
    repo.write("n" * 200 + "/" + "m" * 200, "long")
    repo.git("add", "private", "n" * 200)
    change(repo)
    (repo.path / "private").chmod(0o700)
    repo.git("status")
    before = fingerprint(repo.path)
    with open_travel(examine(str(repo.path), account=repo.account())) as travel:
        copied = unpack_from(client, "vm", travel.write_tar, str(place))
    assert fingerprint(repo.path) == before
    assert copied.notes == ()
    guest = Repo(place / "repo", tmp_path / "home2", init=False)
    theirs = tree(guest.path, owners=False)
    ours = tree(repo.path, owners=False)
    check_same(repo, guest)
    here = {os.fsencode(name) for name in travel.plan.files}
    above = {b"/".join(name.split(b"/")[:depth]) for name in here for depth in range(1, name.count(b"/") + 1)}
    arrived = {name for name in theirs if name.split(b"/")[0] != b".git"}
    assert arrived == {*here, *above, b"."}
    for name in arrived:
        assert theirs[name] == ours[name], name
    assert [name for name in os.listdir(tmp_path) if name.startswith("banger-travel")] == []


@pytest.mark.parametrize("how", ["changed", "ctrl-c", "late"])
def test_what_breaks_off_is_not_there(client: AgentsClient, place: Path, tmp_path: Path, how: str) -> None:
    repo = make(tmp_path)
    repo.write("big", os.urandom(3 << 20))
    repo.commit()

    def produce(write: object) -> None:
        assert callable(write)
        seen = 0

        def slow(piece: bytes | memoryview) -> None:
            nonlocal seen
            seen += len(piece)
            if how == "ctrl-c" and seen > 4 << 20:
                raise KeyboardInterrupt
            write(piece)

        if how == "changed":
            repo.write("big", "small")
        travel.write_tar(slow)
        if how == "late":
            raise BangerError(ErrorCode.BUSY, "after the last byte")

    source = examine(str(repo.path), account=repo.account())
    with open_travel(source) as travel, pytest.raises((BangerError, KeyboardInterrupt)):
        unpack_from(client, "vm", produce, str(place))
    for _ in range(200):
        if not os.listdir(place):
            break
        os.sched_yield()
    assert not (place / "repo").exists()


def test_there_must_be_a_place(client: AgentsClient, place: Path, tmp_path: Path) -> None:
    repo = make(tmp_path)
    source = examine(str(repo.path), account=repo.account())
    with open_travel(source) as travel, pytest.raises(BangerError) as caught:
        unpack_from(client, "vm", travel.write_tar, str(place / "no/such"))
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert not leftovers(place)
