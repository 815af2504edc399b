"""Copies against a hostile or dying agent: nothing leads out of the target, nothing half stays."""

from __future__ import annotations

import io
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banger.client import copystream, copytar
from banger.client.client import Client
from banger.client.copy import copy_in, copy_out, pack_out, unpack_in
from banger.errors import BangerError, ErrorCode
from banger.guest import wire
from banger.guest.wire import encode_fields, encode_frame
from tests.capabilities import demand
from tests.fakes.guestagent import FakeGuestSocket
from tests.unit.agent.copying import leftovers

FOLDER, REGULAR = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
Entries = list[tuple[tarfile.TarInfo, bytes]]


class FakesClient(Client):
    def __init__(self, socket_path: str) -> None:
        super().__init__(autostart=False)
        self._path = socket_path

    def connect_vm(self, reference: str, *, purpose: str = "exec") -> Any:
        return {"vsock_path": self._path, "port": 1024, "name": reference}


def hello(features: str = "copy") -> bytes:
    return encode_frame(wire.FRAME_HELLO, encode_fields([(wire.HELLO_FEATURES, features)]))


def started(mode: int = FOLDER) -> bytes:
    return encode_frame(wire.FRAME_COPY_STARTED, encode_fields([(wire.COPY_STARTED_MODE, mode)]))


def error(code: str, message: str, number: int) -> bytes:
    fields: list[tuple[int, bytes | str | int]] = [
        (wire.ERROR_CODE, code),
        (wire.ERROR_MESSAGE, message),
        (wire.ERROR_ERRNO, number),
    ]
    return encode_frame(wire.FRAME_ERROR, encode_fields(fields))


def data_frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + bytes((wire.FRAME_COPY_DATA,)) + data


END = encode_frame(wire.FRAME_COPY_END, encode_fields([(wire.COPY_DONE_ENTRIES, 1)]))


def read_frame(connection: socket.socket) -> tuple[int, bytes]:
    def exactly(length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = connection.recv(length - len(data))
            if not piece:
                raise ConnectionError
            data += piece
        return data

    header = exactly(5)
    return header[4], exactly(int.from_bytes(header[:4], "little"))


@contextmanager
def agent(tmp_path: Path, script: Callable[[socket.socket], None]) -> Iterator[FakesClient]:
    path = str(tmp_path / "v.sock")
    fake = FakeGuestSocket(path, script)
    try:
        yield FakesClient(path)
    finally:
        fake.close()
        os.unlink(path)


def sender(*pieces: bytes, mode: int = FOLDER) -> Callable[[socket.socket], None]:
    """An agent that sends these bytes for a COPY_OUT, then closes."""

    def script(connection: socket.socket) -> None:
        connection.sendall(hello())
        assert read_frame(connection)[0] == wire.FRAME_COPY_OUT
        connection.sendall(started(mode) + b"".join(pieces))

    return script


def archive(entries: Entries, *, end: bool = True) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as made:
        for info, content in entries:
            made.addfile(info, io.BytesIO(content) if info.isreg() else None)
        length = made.offset
    return data.getvalue() if end else data.getvalue()[:length]


def entry(name: str, content: bytes = b"", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def top(**more: object) -> tuple[tarfile.TarInfo, bytes]:
    return entry(".", b"", **{"type": tarfile.DIRTYPE, "mode": 0o755, **more})


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "place"
    (made / "target").mkdir(parents=True)
    (made / "outside").write_text("outside")
    yield made
    assert not leftovers(made)
    assert (made / "outside").read_text() == "outside"
    assert (made / "outside").stat().st_nlink == 1


HOSTILE: dict[str, Entries] = {
    "dots": [top(), entry("../escaped", b"x")],
    "dots inside": [top(), entry("a/../../escaped", b"x")],
    "dots as a folder": [top(), entry("..", type=tarfile.DIRTYPE)],
    "absolute": [top(), entry("/escaped", b"x")],
    "absolute folder": [top(), entry("//tmp", type=tarfile.DIRTYPE)],
    "through a link": [top(), entry("a", type=tarfile.SYMTYPE, linkname=".."), entry("a/escaped", b"x")],
    "through a link, folder": [
        top(),
        entry("a", type=tarfile.SYMTYPE, linkname=".."),
        entry("a", type=tarfile.DIRTYPE),
    ],
    "through a link, deep": [
        top(),
        entry("d/a", type=tarfile.SYMTYPE, linkname="../.."),
        entry("d/a/escaped/file", b"x"),
    ],
    "through a link that was there": [top(), entry("link/escaped", b"x")],
    "folder over a link that was there": [top(), entry("link", type=tarfile.DIRTYPE)],
    "through a file": [top(), entry("f", b"x"), entry("f/escaped", b"x")],
    "hard link": [top(), entry("a", type=tarfile.LNKTYPE, linkname="../outside")],
    "hard link, absolute": [top(), entry("a", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
    "hard link through a link": [
        top(),
        entry("s", type=tarfile.SYMTYPE, linkname=".."),
        entry("a", type=tarfile.LNKTYPE, linkname="s/outside"),
    ],
    "hard link through a link that was there": [
        top(),
        entry("a", type=tarfile.LNKTYPE, linkname="link/outside"),
    ],
    "hard link to the top": [top(), entry("a", type=tarfile.LNKTYPE, linkname=".")],
    "no name": [top(), entry("", b"x")],
    "a file for the top": [top(), entry(".", b"x")],
    "too deep": [top(), entry("a/" * 1000 + "b", b"x")],
    "a NUL in a name": [top(), entry("a", b"x", pax_headers={"path": "b\0c"})],
    "a kind of its own": [top(), entry("a", type=b"Z")],
}


@pytest.mark.parametrize(
    ("name", "merged"),
    [(name, merged) for name in HOSTILE for merged in (True, False) if merged or "was there" not in name],
)
def test_nothing_leads_out_of_the_target(tmp_path: Path, place: Path, name: str, merged: bool) -> None:
    (place / "target" / "link").symlink_to("..")
    destination = place / ("target" if merged else "new")
    with (
        agent(tmp_path, sender(data_frame(archive(HOSTILE[name])), END)) as client,
        pytest.raises(BangerError) as refused,
    ):
        copy_out(client, "vm", "/x/.", str(destination))
    assert sorted(path.name for path in place.iterdir()) == ["outside", "target"]
    assert not list(place.rglob("escaped"))
    hostile = HOSTILE[name][-1][0].name
    assert refused.value.code is ErrorCode.GUEST_ERROR
    assert hostile[:30] in refused.value.brief


def test_links_are_made_but_never_followed(tmp_path: Path, place: Path) -> None:
    """Wherever they point: a link is only a name. A file in its place takes the place of the link."""
    entries = [
        top(),
        entry("a", type=tarfile.SYMTYPE, linkname="../outside"),
        entry("a", b"in its place"),
        entry("b", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("c", type=tarfile.LNKTYPE, linkname="b"),
    ]
    for destination in ("target", "new"):
        with agent(tmp_path, sender(data_frame(archive(entries)), END)) as client:
            copy_out(client, "vm", "/x/.", str(place / destination))
        assert (place / destination / "a").read_text() == "in its place"
        assert (
            os.readlink(place / destination / "b") == os.readlink(place / destination / "c") == "/etc/passwd"
        )


def test_files_are_the_callers(tmp_path: Path, place: Path) -> None:
    entries = [
        top(mode=0o7777, uid=1234),
        entry("set-id", b"x", mode=0o6755, uid=1234, gid=1234),
        entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
        entry("pipe", type=tarfile.FIFOTYPE),
        entry("pipe-too", type=tarfile.LNKTYPE, linkname="pipe"),
    ]
    with agent(tmp_path, sender(data_frame(archive(entries)), END)) as client:
        copied = copy_out(client, "vm", "/x", str(place / "new"))
    assert os.listdir(place / "new") == ["set-id"]
    for path, mode in ((place / "new", 0o777), (place / "new" / "set-id", 0o755)):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
        assert stat.S_IMODE(status.st_mode) == mode
    assert copied.notes == ("4 left out: sockets, and without -a devices and pipes",)


@pytest.mark.parametrize("key", ["mtime", "uid", "gid"])
def test_numbers_that_are_none(tmp_path: Path, place: Path, key: str) -> None:
    demand("root")
    data = archive(
        [top(), entry("a", b"x", pax_headers={key: "9" * 18 + ("9" * 20 if key == "mtime" else "")})]
    )
    with (
        agent(tmp_path, sender(data_frame(data), END)) as client,
        pytest.raises(BangerError, match="malformed"),
    ):
        copy_out(client, "vm", "/x", str(place / "new"), owners=True)
    assert not (place / "new").exists()


PARTS = data_frame(
    archive([top(), entry("whole", b"w" * 700), entry("sub/half", b"h" * 9000), entry("last", b"x")])
)


@pytest.mark.parametrize("cut", [5, 500, 600, 2000, 2600, 4000, 9000, len(PARTS) - 1, len(PARTS)])
@pytest.mark.parametrize("merged", [True, False])
def test_a_guest_that_dies_leaves_nothing_half(tmp_path: Path, place: Path, cut: int, merged: bool) -> None:
    destination = place / ("target" if merged else "new")
    with (
        agent(tmp_path, sender(PARTS[:cut])) as client,
        pytest.raises(BangerError, match="broke before the copy ended") as lost,
    ):
        copy_out(client, "vm", "/x/.", str(destination))
    assert lost.value.code is ErrorCode.GUEST_UNREACHABLE
    assert not (place / "new").exists()
    found = {path.name: path.stat().st_size for path in destination.rglob("*") if path.is_file()}
    whole = {"whole": 700, "half": 9000, "last": 1}
    assert found.items() <= whole.items()


def test_an_agents_error_is_told(tmp_path: Path, place: Path) -> None:
    said = error("failed", "cannot read /x/\x1b[31mbad: Input/output error", 5)
    with (
        agent(tmp_path, sender(PARTS[:3000][:5], said)) as client,
        pytest.raises(BangerError),
    ):
        copy_out(client, "vm", "/x", str(place / "new"))
    whole = data_frame(archive([top(), entry("a", b"x" * 600)])[:1200])
    with agent(tmp_path, sender(whole, said)) as client, pytest.raises(BangerError) as told:
        copy_out(client, "vm", "/x", str(place / "new"))
    assert (
        told.value.brief
        == "in the guest: cannot read /x/\N{REPLACEMENT CHARACTER}[31mbad: Input/output error"
    )
    assert sorted(os.listdir(place)) == ["outside", "target"]


def test_an_older_agent_is_named(tmp_path: Path) -> None:
    def old(connection: socket.socket) -> None:
        connection.sendall(hello("health exec"))
        read_frame(connection)

    with agent(tmp_path, old) as client, pytest.raises(BangerError, match="older than copies") as told:
        copy_out(client, "vm", "/x", str(tmp_path))
    assert told.value.hint == "banger vm restart gives it a new one"


@pytest.mark.parametrize(
    "frames",
    [
        b"\xff\xff\xff\xff\x53",
        (wire.WIRE_MAX_COPY_PAYLOAD + 1).to_bytes(4, "little") + b"\x53" + bytes(400_000),
        b"\xff\xff\xff\x7f\x99",
        data_frame(b"no tar at all".ljust(2000)) + END,
        data_frame(bytes(100)) + END,
        END,
        data_frame(archive([entry("x", b"x", pax_headers={"path": "p" * 200_000})])) + END,
    ],
)
def test_nonsense_is_an_error(tmp_path: Path, place: Path, frames: bytes) -> None:
    with agent(tmp_path, sender(frames)) as client, pytest.raises(BangerError):
        copy_out(client, "vm", "/x", str(place / "new"))


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.randoms(use_true_random=False), st.integers(1, 25))
def test_damaged_archives_only_raise_errors(
    tmp_path: Path, place: Path, dice: random.Random, damages: int
) -> None:
    sparse = copytar.make_map([(0, 4), (900, 4)]) + b"datadata"
    info = entry("sparse", sparse)
    info[0].pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "sparse",
        "GNU.sparse.realsize": "1000",
    }
    whole = bytearray(
        archive(
            [
                top(),
                entry("d", type=tarfile.DIRTYPE),
                entry("d/" + "n" * 150, b"content" * 100),
                entry("d/link", type=tarfile.SYMTYPE, linkname="x" * 120),
                info,
                entry("d/hard", type=tarfile.LNKTYPE, linkname="d/" + "n" * 150),
            ]
        )
    )
    for _ in range(damages):
        whole[dice.randrange(len(whole))] = dice.choice(b"\0 0179=/.\n-_\x80\xff")
    where = place / f"{time.monotonic_ns()}"
    with agent(tmp_path, sender(data_frame(bytes(whole)), END)) as client:
        try:
            copy_out(client, "vm", "/x", str(where))
        except BangerError:
            assert not where.exists()
    assert sorted(path.name for path in place.iterdir() if not path.name.isdigit()) == ["outside", "target"]


def receiver(take: int, *then: bytes) -> Callable[[socket.socket], None]:
    """An agent that takes that many bytes of a COPY_IN, says something, and stops reading."""

    def script(connection: socket.socket) -> None:
        connection.sendall(hello())
        assert read_frame(connection)[0] == wire.FRAME_COPY_IN
        connection.sendall(started(0))
        taken = 0
        while taken < take and (piece := connection.recv(65536)):
            taken += len(piece)
        connection.sendall(b"".join(then))

    return script


@pytest.mark.parametrize("take", [0, 1000, 3 << 20])
def test_an_error_ends_the_sending(tmp_path: Path, take: int) -> None:
    """Also where the agent stops reading: the disk in the guest is full, 8 MiB are still to be sent."""
    (tmp_path / "big").write_bytes(bytes(8 << 20))
    full = error("failed", "cannot write /root/big: No space left on device", 28)
    with (
        agent(tmp_path, receiver(take, full)) as client,
        pytest.raises(BangerError, match="No space left") as told,
    ):
        copy_in(client, "vm", str(tmp_path / "big"), "/root")
    assert told.value.code is ErrorCode.NO_SPACE


@pytest.mark.parametrize("take", [0, 1000, 1 << 40])
def test_a_guest_that_dies_while_it_is_sent_to(tmp_path: Path, take: int) -> None:
    (tmp_path / "big").write_bytes(bytes(4 << 20))
    with agent(tmp_path, receiver(min(take, 4 << 20))) as client, pytest.raises(BangerError) as lost:
        copy_in(client, "vm", str(tmp_path / "big"), "/root")
    assert lost.value.code is ErrorCode.GUEST_UNREACHABLE


def test_a_guest_that_stands_still_is_given_up(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copystream, "STALL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(copystream, "START_TIMEOUT_S", 0.2)
    release = threading.Event()

    def stuck(connection: socket.socket) -> None:
        sender(PARTS[:2000])(connection)
        release.wait(60)

    def mute(connection: socket.socket) -> None:
        release.wait(60)

    def deaf(connection: socket.socket) -> None:
        receiver(0)(connection)
        release.wait(60)

    (tmp_path / "big").write_bytes(bytes(8 << 20))
    big, new = str(tmp_path / "big"), str(place / "new")
    copies: list[tuple[Callable[[socket.socket], None], Callable[[FakesClient], object]]] = [
        (stuck, lambda client: copy_out(client, "vm", "/x", new)),
        (mute, lambda client: copy_out(client, "vm", "/x", new)),
        (deaf, lambda client: copy_in(client, "vm", big, "/root")),
    ]
    for script, copy in copies:
        release.clear()
        with agent(tmp_path, script) as client:
            with pytest.raises(BangerError, match="stands still"):
                copy(client)
            release.set()


def test_a_full_disk_of_ours_is_named(tmp_path: Path, place: Path) -> None:
    demand("root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=True, timeout=30)
    try:
        data = archive([top(), entry("small", b"x"), entry("big", b"x" * 100_000)])
        with agent(tmp_path, sender(data_frame(data), END)) as client, pytest.raises(BangerError) as told:
            copy_out(client, "vm", "/x", str(disk / "new"))
        assert told.value.code is ErrorCode.NO_SPACE
        assert told.value.brief == f"cannot write {disk}/new/big: No space left on device"
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True, timeout=30)


def test_a_source_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    with agent(tmp_path, receiver(1)) as client:
        for path, code in (("nothing", ErrorCode.NOT_FOUND), ("file/", ErrorCode.NOT_FOUND)):
            (tmp_path / "file").write_text("x")
            with pytest.raises(BangerError, match=str(tmp_path / path)) as told:
                copy_in(client, "vm", f"{tmp_path}/{path}", "/root")
            assert told.value.code is code


def test_what_goes_away_while_it_is_copied(tmp_path: Path) -> None:
    """A file that becomes shorter is not sent half: the agent never sees the end."""
    (tmp_path / "source").mkdir()
    shrinking = tmp_path / "source" / "shrinking"
    shrinking.write_bytes(bytes(64 << 20))
    ended: list[bool] = []

    def script(connection: socket.socket) -> None:
        connection.sendall(hello())
        read_frame(connection)
        connection.sendall(started(0))
        kinds = [read_frame(connection)[0]]
        os.truncate(shrinking, 1 << 20)
        try:
            while True:
                kinds.append(read_frame(connection)[0])
        except ConnectionError:
            ended.append(wire.FRAME_COPY_END in kinds)

    with (
        agent(tmp_path, script) as client,
        pytest.raises(BangerError, match=f"cannot copy {tmp_path}/source/shrinking: it became shorter"),
    ):
        copy_in(client, "vm", str(tmp_path / "source"), "/root")
    assert ended == [False]


INTERRUPTED = """
import sys
sys.path[:0] = {paths!r}
from tests.unit.client.test_copy import FakesClient
from banger.client.copy import copy_out
try:
    copy_out(FakesClient({socket!r}), "vm", "/x", {destination!r})
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interrupt_removes_what_was_begun(tmp_path: Path, place: Path) -> None:
    release = threading.Event()

    def stuck(connection: socket.socket) -> None:
        sender(PARTS[:6000])(connection)
        release.wait(60)

    project = Path(__file__).parents[3]
    with agent(tmp_path, stuck):
        program = INTERRUPTED.format(
            paths=[str(project), str(project / "src")],
            socket=str(tmp_path / "v.sock"),
            destination=str(place / "new"),
        )
        process = subprocess.Popen([sys.executable, "-c", program])
        try:
            deadline = time.monotonic() + 60
            while not leftovers(place):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
            process.wait()
            release.set()
    assert sorted(os.listdir(place)) == ["outside", "target"]


def test_archives_go_through_as_they_are(tmp_path: Path) -> None:
    data = archive([entry("../any", b"thing" * 100_000)])
    pieces = [data_frame(data[at : at + 100_000]) for at in range(0, len(data), 100_000)]
    with agent(tmp_path, sender(*pieces, END)) as client, (tmp_path / "out").open("wb") as out:
        pack_out(client, "vm", "/x", out.fileno())
    assert (tmp_path / "out").read_bytes() == data
    taken: list[bytes] = []

    def script(connection: socket.socket) -> None:
        connection.sendall(hello())
        read_frame(connection)
        connection.sendall(started(0))
        while (frame := read_frame(connection))[0] == wire.FRAME_COPY_DATA:
            taken.append(frame[1])
        connection.sendall(encode_frame(wire.FRAME_OK, encode_fields([(wire.COPY_DONE_ENTRIES, 7)])))

    with agent(tmp_path, script) as client, (tmp_path / "out").open("rb") as source:
        copied = unpack_in(client, "vm", source.fileno(), "/x")
    assert b"".join(taken) == data
    assert (copied.entries, copied.bytes) == (7, len(data))


names = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name)
numbers = st.integers(0, 2**32 - 2)


@given(names, names, numbers, numbers, st.integers(0, 2**62), st.integers(-(2**61), 2**61))
def test_headers_come_back(path: bytes, link: bytes, uid: int, gid: int, size: int, mtime_ns: int) -> None:
    head = copytar.Head(path, copytar.SYMLINK, 0o6754, uid, gid, size, mtime_ns, link, 0, 0)
    data = bytearray(copytar.make_head(head))
    assert len(data) % 512 == 0
    got = copytar.read_head(data, 0)
    if got.kind == copytar.EXTENDED:
        end = 512 + got.size
        records = copytar.read_records(bytes(data[512:end]))
        got = copytar.with_records(copytar.read_head(data, end + -end % 512), records)
    assert got == head


@given(st.binary(max_size=200))
def test_hostile_records_only_raise_not_tar(data: bytes) -> None:
    head = copytar.Head(b"a", copytar.FILE, 0, 0, 0, 0, 0, b"", 0, 0)
    try:
        records = copytar.read_records(data)
        copytar.with_records(head, records)
        copytar.sparse_size(records)
    except copytar.NotTar:
        pass
