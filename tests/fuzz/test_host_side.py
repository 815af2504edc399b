"""The host's readers of what a guest says, against any bytes and against frames that are almost right.

Only the errors that a reader declares come out of it, nothing is written beside a copy's target, what is held
stays bounded, and no control character of the guest's is in a text that we would print or log.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import shutil
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from banger.client import copytar
from banger.client.agentconnection import AgentConnection
from banger.client.attach import Attachment, AttachOptions
from banger.client.copyextract import Extraction
from banger.client.copyfolders import Target
from banger.client.copystream import CopyStream
from banger.client.guest import Exec
from banger.client.sessionstream import LogStream, Sender
from banger.errors import BangerError
from banger.guest import sessionwire, wire
from banger.guest.agent import parse_health
from banger.guest.connection import parse_hello
from banger.guest.ports import parse_listener
from banger.guest.ready import KINDS, ReadyListener
from banger.guest.sessions import GuestSessions, parse_session
from banger.guest.stream import refusal
from banger.guest.wire import FrameReader, WireError
from tests.fakes.guestagent import FakeGuestSocket
from tests.fuzz import seeds

EXAMPLES = settings(
    max_examples=120,
    deadline=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
EVIL = "\x1b]0;x\x07\r\n\t\x00\x9b31m\u202e\u2028\x7f"
PLAIN = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]*")
TAGS = range(40)
HOLDS_KIB = 200_000
"""The process may grow by so much while all examples run; each has at most 128 KiB to say."""


class Said(bytes):
    """Bytes that are too many to be shown; a failing example is shrunk first."""

    def __repr__(self) -> str:
        return super().__repr__() if len(self) < 3000 else f"<{len(self)} bytes, {bytes(self[:1500])!r} …>"


values = st.one_of(
    st.binary(max_size=40),
    st.integers(0, (1 << 64) - 1).map(lambda number: struct.pack("<Q", number)),
    st.integers(0, 70).map(lambda number: struct.pack("<Q", number)),
    st.sampled_from(
        [
            *(EVIL.encode(), seeds.ID.encode(), b"running", b"exited", b"failed", b"poweroff"),
            *(b"tcp", b"K=V", b"x" * 5000),
        ]
    ),
)
fields = st.lists(st.tuples(st.sampled_from(TAGS), values), max_size=12).map(
    lambda pairs: b"".join(struct.pack("<BI", tag, len(value)) + value for tag, value in pairs)
)
cut_off = st.tuples(fields, st.binary(max_size=9)).map(b"".join)
payloads = st.one_of(fields, fields, st.binary(max_size=100), cut_off).map(Said)
KINDS_OF_FRAMES = [
    *(
        wire.FRAME_HELLO,
        wire.FRAME_ERROR,
        wire.FRAME_OK,
        wire.FRAME_STDOUT,
        wire.FRAME_STDERR,
        wire.FRAME_EXIT,
    ),
    *(
        wire.FRAME_STARTED,
        wire.FRAME_WINDOW,
        wire.FRAME_SESSION,
        wire.FRAME_COPY_STARTED,
        wire.FRAME_COPY_NOTE,
    ),
    *(wire.FRAME_COPY_END, wire.FRAME_COPY_DATA, wire.FRAME_READY, wire.FRAME_ENDING, 0x77),
]
frames = st.tuples(st.sampled_from(KINDS_OF_FRAMES), payloads).map(
    lambda frame: struct.pack("<IB", len(frame[1]), frame[0]) + frame[1]
)
broken = st.sampled_from([b"", b"\xff" * 5, struct.pack("<IB", 65537, wire.FRAME_STDOUT), b"\x05\0\0"])
streams = st.tuples(st.lists(frames, max_size=12).map(b"".join), broken).map(b"".join).map(Said)


def check_said(*texts: str | None) -> None:
    for text in texts:
        assert PLAIN.fullmatch(text or ""), repr(text)
        assert len(text or "") < 20_000


def check_error(error: BangerError) -> None:
    check_said(error.brief, error.hint, error.details)
    check_said(*(str(value) for value in error.data.values()))


@pytest.fixture(autouse=True, scope="module")
def _bounded() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < HOLDS_KIB


@contextmanager
def guest_that_says(data: bytes) -> Iterator[AgentConnection]:
    """A connection whose other end has said all this, and no more; what we say is taken."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.setblocking(False)
        assert theirs.send(data) == len(data) if data else True
        theirs.shutdown(socket.SHUT_WR)
        yield AgentConnection(ours)


@EXAMPLES
@given(payloads)
def test_payloads(data: bytes) -> None:
    for parse in (parse_hello, parse_health, parse_listener, refusal):
        try:
            parsed = parse(data)
        except WireError as error:
            check_said(str(error))
        except BangerError as error:
            check_error(error)
        else:
            if isinstance(parsed, BangerError):
                check_error(parsed)
            else:
                check_said(repr(parsed))
    fields_ = None
    try:
        fields_ = wire.Fields(data)
    except WireError as error:
        check_said(str(error))
    for tag in TAGS if fields_ else ():
        assert fields_ is not None
        check_said(fields_.text(tag))


@EXAMPLES
@given(st.booleans(), payloads)
def test_records_of_sessions(good: bool, data: bytes) -> None:
    start = (
        wire.encode_fields([(wire.SESSION_ID, seeds.ID), (wire.SESSION_STATUS, "failed")]) if good else b""
    )
    try:
        session = parse_session(start + data, vm_id="v")
    except WireError as error:
        check_said(str(error))
        return
    assert msgspec.json.decode(msgspec.json.encode(session))["id"] == session.id
    assert sessionwire.is_session_id(session.id)
    # command, folder, user, variables and tags are what was asked for; who prints them escapes them
    check_said(session.name, session.status, session.last_error, session.launch_stage, session.launch_message)
    check_said(session.guest_state_dir, session.stdout_log_path, session.stderr_log_path)


@EXAMPLES
@given(streams, st.integers(1, 4000))
def test_frames(data: bytes, size: int) -> None:
    reader = FrameReader()
    try:
        for at in range(0, len(data), size):
            for frame in reader.feed(data[at : at + size]):
                assert len(frame.payload) <= wire.frame_limit(frame.type)
    except WireError as error:
        check_said(str(error))


@EXAMPLES
@given(streams)
def test_calls_of_a_guest(data: bytes) -> None:
    endings: list[tuple[str, str]] = []
    listener = ReadyListener("/nowhere", on_ending=lambda kind, message: endings.append((kind, message)))
    try:
        for frame in FrameReader().feed(data):
            listener._take(frame)
    except WireError as error:
        check_said(str(error))
    if listener.ready is not None:
        check_said(repr(listener.ready))
    for kind, message in endings:
        assert kind in KINDS
        check_said(message)
        assert len(message) <= 512


@EXAMPLES
@given(st.sampled_from(["exec", "attach", "logs", "send"]), st.booleans(), streams)
def test_streams_to_the_terminal(kind: str, answered: bool, data: bytes) -> None:
    """Every exchange of the CLI's with an agent ends, with a status or a declared error."""
    if answered:
        data = wire.encode_frame(wire.FRAME_STARTED, wire.encode_fields([(wire.STARTED_PID, 7)])) + data
    null = os.open("/dev/null", os.O_RDWR)
    try:
        with guest_that_says(data) as connection:
            try:
                status = _exchange(kind, connection, null)
            except BangerError as error:
                check_error(error)
            else:
                assert 0 <= status <= 255
    finally:
        os.close(null)


def _exchange(kind: str, connection: AgentConnection, null: int) -> int:
    if kind == "exec":
        return Exec(connection, stdin=None, stdout=null, stderr=null).run(["true"])
    if kind == "attach":
        options = AttachOptions(seeds.ID, terminal=False, write=True)
        return Attachment(connection, options, stdin=None, stdout=null, stderr=null).run().status
    if kind == "logs":
        return LogStream(connection, stdout=null, stderr=null).run(sessionwire.encode_session_logs(seeds.ID))
    return Sender(connection, text=b"hello").run(sessionwire.encode_session_send(seeds.ID))


def heads(data: bytes) -> st.SearchStrategy[bytes]:
    """An archive with some of its bytes changed."""
    change = st.tuples(st.integers(0, len(data) - 1), st.binary(min_size=1, max_size=12))

    def changed(changes: list[tuple[int, bytes]]) -> bytes:
        made = bytearray(data)
        for at, piece in changes:
            made[at : at + len(piece)] = piece
        return bytes(made)

    return st.lists(change, max_size=6).map(changed)


NAMES = [
    *(b"a", b"..", b"../x", b"/x", b"d/x", b"l/x", b"l", b".", b"", b"d/../../x", b"a\0b"),
    *(b"x" * 300, b"\x1b[2J", b"d", "\u202e".encode()),
]
entries = st.builds(
    lambda path, kind, link, mode, mtime: (
        copytar.make_head(
            copytar.Head(path, kind, mode, 0, 0, 4 if kind == copytar.FILE else 0, mtime, link, 1, 3)
        )
        + (b"data" + copytar.padding(4) if kind == copytar.FILE else b"")
    ),
    st.sampled_from(NAMES),
    st.sampled_from(
        [copytar.FILE, copytar.LINK, copytar.SYMLINK, copytar.FOLDER, copytar.FIFO, copytar.CHARACTER, b"Z"]
    ),
    st.sampled_from([b"../outside", b"a", b"/etc/passwd", b"l/outside", b".", b""]),
    st.sampled_from([0o644, 0o755, 0, 0o6777]),
    st.sampled_from([0, 1, -5, 10**18, 10**28]),
)
_TOP = copytar.make_head(copytar.Head(b".", copytar.FOLDER, 0o755, 0, 0, 0, 0, b"", 0, 0))
made_archives = st.lists(entries, max_size=8).map(lambda parts: _TOP + b"".join(parts) + copytar.END)
changed_archives = st.one_of(heads(seeds.own_archive()), heads(seeds.archive()))
archives = st.one_of(made_archives, changed_archives, st.binary(max_size=2000)).map(Said)


def _framed(data: bytes, size: int, *, whole: bool) -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    made = b"".join(struct.pack("<IB", len(piece), wire.FRAME_COPY_DATA) + piece for piece in pieces)
    return made + (wire.encode_frame(wire.FRAME_COPY_END) if whole else b"")


@EXAMPLES
@given(
    archives,
    st.sampled_from([512, 1000, 60000]),
    st.booleans(),
    st.booleans(),
    st.one_of(st.just(b""), streams),
)
def test_copies_out_of_a_guest(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int, whole: bool, merged: bool, behind: bytes
) -> None:
    place = tmp_path_factory.mktemp("place")
    try:
        (place / "target" / "d").mkdir(parents=True)
        (place / "target" / "l").symlink_to("..")
        (place / "outside").write_text("outside")
        with guest_that_says(_framed(data, size, whole=whole) + behind) as connection:
            _copy(connection, place, b"" if merged else b"new")
        assert {path.name for path in place.iterdir()} == {"outside", "target"}
        assert (place / "outside").read_text() == "outside"
        assert (place / "outside").stat().st_nlink == 1
        for path in (place / "target").rglob("*"):
            mode = path.lstat().st_mode
            assert not path.name.startswith(".banger-cp")
            assert stat.S_ISLNK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)
            assert path.is_symlink() or not mode & 0o6000
    finally:
        shutil.rmtree(place)


def _copy(connection: AgentConnection, place: Path, name: bytes) -> None:
    folder = os.open(place / "target", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with CopyStream(connection) as stream:
            Extraction(stream, Target(folder, name, "target", False)).run()
            check_said(*stream.notes)
    except BangerError as error:
        check_error(error)
    finally:
        os.close(folder)


@pytest.mark.anyio
@settings(EXAMPLES, max_examples=60)
@given(streams)
async def test_answers_about_sessions(data: bytes) -> None:
    """What the daemon asks, whatever is answered; and what it says of that in its log."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("banger").addHandler(handler)
    hello = wire.encode_fields([(wire.HELLO_VERSION, 1), (wire.HELLO_FEATURES, "sessions")])
    said = wire.encode_frame(wire.FRAME_HELLO, hello) + data
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeGuestSocket(f"{folder}/v.sock", lambda connection: connection.sendall(said))
        try:
            await GuestSessions(folder, vm_id="v", vm_name="v").list(timeout_s=5)
        except BangerError as error:
            check_error(error)
        finally:
            fake.close()
            logging.getLogger("banger").removeHandler(handler)
    check_said(*records)
