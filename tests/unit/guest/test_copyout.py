"""A copy out of a guest: from the real agent, and from ones that lie, flood, stop or go."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.guest import copyout, wire
from banger.guest.copyout import copy_out
from banger.guest.wire import encode_fields, encode_frame
from banger.image.initramfs import agent_binary
from banger.system import diskroom
from tests.fakes.guestagent import FakeGuestSocket, Script, end, serve_agent

pytestmark = pytest.mark.anyio

HELLO = encode_frame(wire.FRAME_HELLO, encode_fields([(1, 1), (2, "exec copy"), (3, "1"), (4, "b")]))
STARTED = encode_frame(wire.FRAME_COPY_STARTED, encode_fields([(wire.COPY_STARTED_MODE, 0o40755)]))
END = encode_frame(wire.FRAME_COPY_END, encode_fields([(wire.COPY_DONE_ENTRIES, 3)]))
DATA = encode_frame(wire.FRAME_COPY_DATA, b"x" * 1000)
BIG = (wire.WIRE_MAX_COPY_PAYLOAD).to_bytes(4, "little") + bytes((wire.FRAME_COPY_DATA,))
NOTE = encode_frame(wire.FRAME_COPY_NOTE, encode_fields([(wire.COPY_NOTE_MESSAGE, "left \x1b[31m out")]))


LONG = (1 << 20).to_bytes(4, "little")


def failing(code: str) -> bytes:
    return encode_frame(wire.FRAME_ERROR, encode_fields([(wire.ERROR_CODE, code), (wire.ERROR_MESSAGE, "x")]))


def saying(*answers: bytes, stay: bool = False) -> Script:
    def script(connection: socket.socket) -> None:
        connection.sendall(HELLO)
        connection.recv(4096)
        for answer in answers:
            connection.sendall(answer)
        if stay:
            connection.recv(1)

    return script


async def asked(
    folder: Path, script: Script, *, most_bytes: int = 1 << 20
) -> tuple[copyout.CopiedOut, bytes]:
    fake = FakeGuestSocket(str(folder / "v.sock"), script)
    try:
        with (folder / "out").open("wb") as out:
            done = await copy_out(str(folder), "/root/repo", out, most_bytes=most_bytes)
        return done, (folder / "out").read_bytes()
    finally:
        fake.close()


async def test_what_comes_is_written(tmp_path: Path) -> None:
    payload = os.urandom(wire.WIRE_MAX_COPY_PAYLOAD)
    done, data = await asked(tmp_path, saying(STARTED, DATA, NOTE, BIG + payload, END))
    assert data == b"x" * 1000 + payload
    assert (done.bytes, done.entries) == (len(data), 3)
    assert [note.isprintable() for note in done.notes] == [True]


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ((), ErrorCode.GUEST_UNREACHABLE),
        ((STARTED,), ErrorCode.GUEST_UNREACHABLE),
        ((STARTED, DATA[:100]), ErrorCode.GUEST_UNREACHABLE),
        ((END,), ErrorCode.GUEST_UNREACHABLE),
        (
            (STARTED, LONG + bytes((wire.FRAME_COPY_DATA,))),
            ErrorCode.GUEST_UNREACHABLE,
        ),
        (
            (STARTED, LONG + bytes((wire.FRAME_COPY_NOTE,))),
            ErrorCode.GUEST_UNREACHABLE,
        ),
        ((STARTED, encode_frame(wire.FRAME_COPY_END, b"\x01\x01")), ErrorCode.GUEST_UNREACHABLE),
        ((STARTED, *[BIG + bytes(wire.WIRE_MAX_COPY_PAYLOAD)] * 5), ErrorCode.GUEST_ERROR),
        (
            (failing("not_found"),),
            ErrorCode.NOT_FOUND,
        ),
        (
            (STARTED, failing("failed")),
            ErrorCode.GUEST_ERROR,
        ),
    ],
)
async def test_a_broken_one_is_an_error(tmp_path: Path, answers: tuple[bytes, ...], code: ErrorCode) -> None:
    with pytest.raises(BangerError) as caught:
        await asked(tmp_path, saying(*answers))
    assert caught.value.code is code


async def test_silence_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copyout, "STALL_TIMEOUT_S", 0.1)
    with pytest.raises(BangerError) as caught:
        await asked(tmp_path, saying(STARTED, DATA, stay=True))
    assert caught.value.code is ErrorCode.TIMEOUT


async def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskroom, "KEEP_FREE_BYTES", 1 << 62)
    with pytest.raises(BangerError) as caught:
        await asked(tmp_path, saying(STARTED, DATA, END))
    assert caught.value.code is ErrorCode.NO_SPACE


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "vm").mkdir()
    running = serve_agent(str(agent_binary()), tmp_path / "vm")
    yield tmp_path / "vm"
    end(running)


async def test_the_real_agent(agent: Path, tmp_path: Path) -> None:
    top = tmp_path / "tree"
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/file").write_bytes(b"content")
    (top / "link").symlink_to("/etc/passwd")
    with (top / "sparse").open("wb") as file:
        file.seek(10_000_000)
        file.write(b"end")
    out = io.BytesIO()
    with (tmp_path / "out").open("w+b") as target:
        await copy_out(str(agent), str(top), target, most_bytes=1 << 20)
        target.seek(0)
        out.write(target.read())
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        names = {info.name for info in archive}
    assert names == {".", "a", "a/b", "a/b/file", "link", "sparse"}
    with pytest.raises(BangerError) as caught, (tmp_path / "out").open("wb") as target:
        await copy_out(str(agent), str(tmp_path / "missing"), target, most_bytes=1 << 20)
    assert caught.value.code is ErrorCode.NOT_FOUND
