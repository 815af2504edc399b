"""A copy into a guest: to the real agent, and to ones that refuse, lie, stop or go."""

from __future__ import annotations

import io
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.guest import copyin, wire
from banger.guest.copyin import copy_in
from banger.guest.errors import AgentRefused
from banger.guest.wire import encode_fields, encode_frame
from banger.image.initramfs import agent_binary
from tests.fakes.guestagent import FakeGuestSocket, Script, end, serve_agent

pytestmark = pytest.mark.anyio

STARTED = encode_frame(wire.FRAME_COPY_STARTED, b"")
OK = encode_frame(wire.FRAME_OK, encode_fields([(wire.COPY_DONE_ENTRIES, 1)]))
NOTE = encode_frame(wire.FRAME_COPY_NOTE, encode_fields([(wire.COPY_NOTE_MESSAGE, "left out")]))
REFUSED = encode_frame(
    wire.FRAME_ERROR, encode_fields([(wire.ERROR_CODE, "failed"), (wire.ERROR_MESSAGE, "no room")])
)


def archive(**files: bytes) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        folder = tarfile.TarInfo("new")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(folder)
        for name, content in files.items():
            entry = tarfile.TarInfo(f"new/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    made.seek(0)
    return made


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    running = serve_agent(str(agent_binary()), tmp_path)
    yield tmp_path
    end(running)


async def test_into_a_folder(agent: Path) -> None:
    content = bytes(range(256)) * 4000
    await copy_in(str(agent), str(agent), archive(a=content))
    assert (agent / "new/a").read_bytes() == content
    assert (agent / "new").stat().st_mode & 0o777 == 0o700
    await copy_in(str(agent), str(agent), archive(b=b"b"))
    assert {path.name for path in (agent / "new").iterdir()} == {"a", "b"}
    await copy_in(str(agent), str(agent), archive(c=b"c"), replace=True)
    assert {path.name for path in (agent / "new").iterdir()} == {"c"}


async def test_no_folder_there(agent: Path) -> None:
    with pytest.raises(AgentRefused) as refused:
        await copy_in(str(agent), str(agent / "missing"), archive())
    assert refused.value.agent_code == "not_found"


def saying(*answers: bytes, features: str = "exec copy copy-replace", stay: bool = False) -> Script:
    hello = encode_fields([(1, 1), (2, features), (3, "1"), (4, "b")])

    def script(connection: socket.socket) -> None:
        connection.sendall(encode_frame(wire.FRAME_HELLO, hello))
        for answer in answers:
            connection.recv(4096)
            connection.sendall(answer)
        if stay:
            while connection.recv(1 << 16):
                pass

    return script


async def asked(folder: Path, script: Script, data: io.BytesIO) -> None:
    fake = FakeGuestSocket(str(folder / "v.sock"), script)
    try:
        await copy_in(str(folder), "/run", data)
    finally:
        fake.close()


async def test_notes_are_passed_over(tmp_path: Path) -> None:
    await asked(tmp_path, saying(NOTE + STARTED, NOTE + OK, stay=True), archive())


async def test_refused_in_the_middle(tmp_path: Path) -> None:
    """The agent's word is heard also where it does not take the rest."""
    with pytest.raises(AgentRefused, match="no room"):
        await asked(tmp_path, saying(STARTED, REFUSED, stay=True), archive(a=bytes(8 << 20)))


@pytest.mark.parametrize("answers", [(), (STARTED,), (OK,), (STARTED, STARTED), (b"\xff\xff\xff\xff\x03",)])
async def test_agent_that_goes_or_lies(tmp_path: Path, answers: tuple[bytes, ...]) -> None:
    with pytest.raises(BangerError) as failed:
        await asked(tmp_path, saying(*answers), archive())
    assert failed.value.code is ErrorCode.GUEST_UNREACHABLE


@pytest.mark.parametrize("answers", [(), (STARTED,)])
async def test_agent_that_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: tuple[bytes, ...]
) -> None:
    monkeypatch.setattr(copyin, "STALL_TIMEOUT_S", 0.2)
    with pytest.raises(BangerError) as failed:
        await asked(tmp_path, saying(*answers, stay=True), archive())
    assert failed.value.code is ErrorCode.TIMEOUT


async def test_agent_that_is_older(tmp_path: Path) -> None:
    with pytest.raises(BangerError, match="older than copies") as failed:
        await asked(tmp_path, saying(features="exec copy", stay=True), archive())
    assert failed.value.code is ErrorCode.GUEST_ERROR
