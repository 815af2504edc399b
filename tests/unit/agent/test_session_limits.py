"""Sessions against bounds, hostile bytes, broken files, full disks and strangers."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from banger.guest import sessionwire, wire
from banger.guest.wire import Fields, encode_fields, encode_frame
from tests.capabilities import demand
from tests.unit.agent.conftest import TIMEOUT_S, Agent
from tests.unit.agent.sessions import Connection, Refused, Sessions, wait_gone

ID = "0123456789abcdef" * 2


@pytest.fixture
def sessions(agent: Agent) -> Iterator[Sessions]:
    made = Sessions(agent)
    try:
        yield made
    finally:
        if agent.process.poll() is None:
            made.remove_all()


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for it that a socket's address has room for."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The state folder of the agent on a disk of 512 KiB."""
    demand("root")
    folder = tmp_path / "v.sock.state"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=0700", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def start_fields(*more: tuple[int, bytes | str | int]) -> list[tuple[int, bytes | str | int]]:
    return [(wire.SESSION_ID, ID), (wire.SESSION_NAME, "n"), (wire.SESSION_ARGUMENT, "true"), *more]


@pytest.mark.parametrize(
    "frame",
    [
        (wire.FRAME_SESSION_START, start_fields()[1:]),
        (wire.FRAME_SESSION_START, start_fields()[:2]),
        (wire.FRAME_SESSION_START, [start_fields()[0], start_fields()[2]]),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_ID, "../../../../tmp/escape-12345678"))),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_ID, ID.upper()))),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_ID, ID + "0"))),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_ID, b"0" * 31 + b"\0"))),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_NAME, ""))),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_NAME, "a/b"))),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_NAME, "a\n"))),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_NAME, "x" * 64))),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_TAG, ""))),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_TAG, "x" * 256))),
        (wire.FRAME_SESSION_START, start_fields(*[(wire.SESSION_TAG, "t")] * 65)),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_ENV, "no equals sign"))),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_ENV, "=no name"))),
        (wire.FRAME_SESSION_START, start_fields(*[(wire.SESSION_ARGUMENT, "x")] * 4096)),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_ROWS, 65536))),
        (wire.FRAME_SESSION_START, start_fields((wire.SESSION_FLAGS, b"short"))),
        (wire.FRAME_SESSION_LIST, [(wire.SESSION_ID, "..")]),
        (wire.FRAME_SESSION_LIST, [(wire.SESSION_ID, "")]),
        (wire.FRAME_SESSION_ATTACH, []),
        (wire.FRAME_SESSION_ATTACH, [(wire.SESSION_ID, ID), (wire.SESSION_COLS, 1 << 40)]),
        (wire.FRAME_SESSION_LOGS, [(wire.SESSION_ID, ID), (wire.SESSION_TAIL_LINES, b"1")]),
        (wire.FRAME_SESSION_SIGNAL, [(wire.SESSION_ID, ID), (wire.SESSION_NUMBER, 65)]),
        (wire.FRAME_SESSION_STOP, [(wire.SESSION_ID, ID), (wire.SESSION_GRACE_MS, 1 << 32)]),
        (wire.FRAME_SESSION_REMOVE, [(wire.SESSION_ID, "." * 32)]),
        (wire.FRAME_SESSION_SEND, [(wire.SESSION_ID, b"\xff" * 32)]),
    ],
)
def test_malformed_requests(
    sessions: Sessions, frame: tuple[int, list[tuple[int, bytes | str | int]]]
) -> None:
    with pytest.raises(Refused) as caught:
        sessions.ask(encode_frame(frame[0], encode_fields(frame[1])))
    assert caught.value.code == "bad_request"
    assert sessions.list() == {}


@pytest.mark.parametrize("payload", [b"\x01", b"\x01\xff\xff\xff\xff", b"\x03\x08\0\0\0"])
def test_cut_off_fields(sessions: Sessions, payload: bytes) -> None:
    for kind in range(wire.FRAME_SESSION_START, wire.FRAME_SESSION_SEND + 1):
        with pytest.raises(Refused) as caught:
            sessions.ask(encode_frame(kind, payload))
        assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(wire.FRAME_SIGNAL, encode_fields([(1, 65)])),
        encode_frame(wire.FRAME_RESIZE, encode_fields([(1, 1 << 20), (2, 80)])),
        encode_frame(wire.FRAME_SESSION_SEEN, encode_fields([(1, 7)])),
        encode_frame(wire.FRAME_SESSION_SEEN, b"\x01\x02"),
        wire.encode_stdin(b"x" * 65536) * 17,
        b"\x01\x00\x01\x00\x20",
    ],
)
def test_malformed_frames_end_the_attachment_only(sessions: Sessions, data: bytes) -> None:
    started = sessions.start("sleep", "60", stdin=True)
    with sessions.attach(started, write=True) as attached:
        attached.window = -(1 << 30)
        with suppress(ConnectionError):
            attached.send(data)
        assert attached.refused().code == "bad_request"
    sessions.until(started, lambda record: record.number(wire.SESSION_READERS) == 0)
    assert sessions.status(started) == "running"


def test_more_seen_than_there_is_is_cut(sessions: Sessions) -> None:
    started = sessions.start("echo", "hello")
    sessions.ended(started)
    with sessions.attach(started) as attached:
        attached.to_exit()
        attached.offsets = [1 << 63, (1 << 64) - 1]
        attached.detach()
    with sessions.attach(started) as attached:
        assert attached.offsets == [6, 0]


def test_long_commands_are_cut_in_the_record_only(sessions: Sessions) -> None:
    arguments = ["x" * 1000] * 300
    started = sessions.start("sh", "-c", "echo $#", "sh", *arguments, env={"LONG": "y" * 100_000})
    record = sessions.ended(started)
    assert sessions.logs(started)[0] == b"300\n"
    left_out = record.number(wire.SESSION_LEFT_OUT)
    assert 260 < left_out < 301
    (frame,) = sessions.frames(started)
    kept = [
        tag
        for tag, _ in wire.decode_fields(frame.payload)
        if tag in (wire.SESSION_ARGUMENT, wire.SESSION_ENV)
    ]
    assert len(kept) + left_out == 305
    assert sessions.list()[started].number(wire.SESSION_LEFT_OUT) > left_out
    assert record.text(wire.SESSION_STATUS) == "exited"


def test_a_killed_keeper_is_a_failed_session(sessions: Sessions) -> None:
    started = sessions.start("sh", "-c", "echo before; exec sleep 60")
    with sessions.attach(started) as attached:
        attached.said(b"before\n")
        record = sessions.record(started)
        os.kill(record.number(wire.SESSION_KEEPER_PID), signal.SIGKILL)
        with pytest.raises(Refused) as caught:
            attached.to_exit()
        assert caught.value.message == "the session's keeper was killed"
    os.kill(record.number(wire.SESSION_PID), signal.SIGKILL)
    record = sessions.record(started)
    assert record.text(wire.SESSION_STATUS) == "failed"
    assert record.text(wire.SESSION_LAST_ERROR) == "the session's keeper was killed"
    assert sessions.logs(started, follow=True) == (b"before\n", b"")
    for request in (sessionwire.encode_session_send(started), sessionwire.encode_session_signal(started, 15)):
        with pytest.raises(Refused) as caught:
            sessions.ask(request)
        assert caught.value.code == "not_running"
    assert sessions.stop(started).text(wire.SESSION_STATUS) == "failed"
    sessions.remove(started)


def test_a_session_of_an_earlier_boot(sessions: Sessions) -> None:
    started = sessions.start("sleep", "60")
    record = sessions.record(started)
    for pid in (record.number(wire.SESSION_KEEPER_PID), record.number(wire.SESSION_PID)):
        os.kill(pid, signal.SIGKILL)
    written = sessions.folder / started / "session"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    assert boot_id in written.read_bytes()
    written.write_bytes(written.read_bytes().replace(boot_id, b"0" * len(boot_id)))
    assert sessions.record(started).text(wire.SESSION_LAST_ERROR) == "the VM ended while the session ran"


def test_files_that_are_broken_are_survived(sessions: Sessions) -> None:
    sessions.ended(sessions.start("true"))
    for number, content in enumerate([b"", b"\xff" * 5000, b"\x0e\xff\xff\xff\xff", os.urandom(3000)]):
        folder = sessions.folder / f"{number:032x}"
        folder.mkdir(mode=0o700)
        for name in ("session", "status", "seen", "stdout.log"):
            (folder / name).write_bytes(content)
    (sessions.folder / ("f" * 32)).mkdir()
    (sessions.folder / "no-session").write_text("?")
    (sessions.folder / ("e" * 32)).symlink_to("/etc")
    for session_id, record in sessions.list().items():
        assert record.text(wire.SESSION_STATUS) in ("failed", "exited")
        if not sessions.folder.joinpath(session_id, "stdout.log").exists():
            continue
        with suppress(Refused), sessions.attach(session_id) as attached:
            attached.to_exit()
        sessions.logs(session_id, tail=3)
        sessions.remove(session_id)
    assert Path("/etc/passwd").exists()


def test_64_run_at_once_and_no_more(sessions: Sessions) -> None:
    started = [sessions.start("sleep", "60") for _ in range(64)]
    with pytest.raises(Refused) as caught:
        sessions.start("true")
    assert caught.value.code == "busy"
    assert sorted(sessions.list()) == sorted(started)
    with Connection(sessions.agent, encode_frame(wire.FRAME_HEALTH)) as connection:
        assert Fields(connection.want(wire.FRAME_OK).payload).number(wire.HEALTH_RUNNING_SESSIONS) == 64
    sessions.stop(started[0])
    sessions.ended(sessions.start("true"))


def test_1024_are_kept_and_no_more(sessions: Sessions) -> None:
    sessions.remove(sessions.start("true"), force=True)
    for number in range(1024):
        (sessions.folder / f"{number:032x}").mkdir()
    with pytest.raises(Refused) as caught:
        sessions.start("true")
    assert caught.value.code == "busy"
    assert len(sessions.list()) == 1024
    sessions.remove(f"{0:032x}")
    sessions.ended(sessions.start("true"))


def test_a_full_disk_holds_output_back(small_disk: Path, sessions: Sessions) -> None:
    started = sessions.start("sh", "-c", "yes 0123456789 | head -c 3000000; echo end >&2; exit 8")
    with sessions.attach(started) as attached:
        record = sessions.until(started, lambda record: wire.SESSION_LAST_ERROR in record)
        assert record.text(wire.SESSION_STATUS) == "running"
        assert record.text(wire.SESSION_LAST_ERROR) == "output is held back: No space left on device"
        with pytest.raises(Refused) as caught:
            sessions.start("true")
        assert caught.value.code == "failed"
        assert list(sessions.list()) == [started]
        subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
        assert attached.to_exit().number(wire.EXIT_CODE) == 8
        assert attached.out == (b"0123456789\n" * 300_000)[:3_000_000]
        assert attached.err == b"end\n"
    record = sessions.ended(started)
    assert wire.SESSION_LAST_ERROR not in record


def test_a_session_on_a_full_disk_can_be_removed(small_disk: Path, sessions: Sessions) -> None:
    started = sessions.start("yes")
    sessions.until(started, lambda record: wire.SESSION_LAST_ERROR in record)
    assert sessions.status(started) == "running"
    sessions.remove(started, force=True)
    assert sum(path.stat().st_size for path in small_disk.rglob("*.log")) == 0
    sessions.ended(sessions.start("true"))


def test_nothing_leaks_into_commands(sessions: Sessions) -> None:
    started = sessions.start(
        "sh", "-c", "ls /proc/self/fd; grep -E '^Sig(Ign|Blk)' /proc/self/status; ps -o pid=,pgid=,sid= -p $$"
    )
    sessions.ended(started)
    out = sessions.logs(started)[0].splitlines()
    assert out[:4] == [b"0", b"1", b"2", b"3"]
    assert [int(line.split()[1], 16) & ~(3 << 31) for line in out[4:6]] == [0, 0]
    assert len(set(out[6].split())) == 1


def test_the_keeper_holds_no_connection(sessions: Sessions) -> None:
    request = sessionwire.encode_session_start(ID, "n", argv=["sleep", "60"])
    with Connection(sessions.agent, request) as connection:
        connection.want(wire.FRAME_OK)
        assert connection.next() is None  # the agent closes, though the session lives
    keeper = sessions.record(ID).number(wire.SESSION_KEEPER_PID)
    deadline = time.monotonic() + TIMEOUT_S
    # its own socket; who asked for the record may be there a moment longer
    while " ".join(opened := descriptors(keeper)).count("socket:") > 1:
        assert time.monotonic() < deadline, opened
        time.sleep(0.01)
    assert len(opened) <= 12


def descriptors(pid: int) -> list[str]:
    """What they lead to, of those that stay while we look."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found


def test_strangers_at_the_keepers_socket(sessions: Sessions) -> None:
    started = sessions.start("cat", stdin=True)
    with ExitStack() as stack:
        keeper = stack.enter_context(short_path(sessions.folder / started / "keeper"))
        for data in (
            b"",
            b"x",
            os.urandom(11),
            os.urandom(12),
            os.urandom(4000),
            b"\2\0\0\0" + b"\0" * 20000,
        ):
            stranger = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            stranger.connect(keeper)
            stranger.send(data)
        for _ in range(70):  # more than it serves at once
            stranger = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            stranger.connect(keeper)
        time.sleep(0.1)
    assert sessions.status(started) == "running"
    sessions.send(started, b"fine\n", end=True)
    sessions.ended(started)
    assert sessions.logs(started)[0] == b"fine\n"


def test_only_root_may_speak_to_a_keeper(sessions: Sessions) -> None:
    """Neither call it, nor stand in the way of those who do, nor take the name when it has gone."""
    demand("root")
    started = sessions.start("sleep", "60")
    socket_path = sessions.folder / started / "keeper"
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(sessions.folder.stat().st_mode) == 0o700
    program = (
        "import os, socket, sys; folder = os.open(sys.argv[1], os.O_PATH);"
        "os.setgid(65534); os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        "s.connect(f'/proc/self/fd/{folder}/keeper')"
    )
    words = ["python3", "-c", program, str(sessions.folder / started)]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "PermissionError" in run.stderr, run


def test_nobody_listens_where_a_keeper_was(sessions: Sessions) -> None:
    """What a keeper leaves that was killed is a name that refuses: no session runs there."""
    started = sessions.start("sleep", "60")
    record = sessions.record(started)
    os.kill(record.number(wire.SESSION_KEEPER_PID), signal.SIGKILL)
    os.kill(record.number(wire.SESSION_PID), signal.SIGKILL)
    wait_gone(record.number(wire.SESSION_KEEPER_PID))
    assert (sessions.folder / started / "keeper").is_socket()
    assert sessions.status(started) == "failed"
    sessions.remove(started)
    assert not (sessions.folder / started).exists()


def test_a_start_that_was_killed_half_way_is_cleared_by_the_next(sessions: Sessions) -> None:
    sessions.start("true")
    half = sessions.folder / ".starting"
    half.mkdir()
    (half / "session").write_bytes(b"half")
    (half / ".status.1").write_bytes(b"")
    assert len(sessions.list()) == 1
    sessions.start("true")
    assert not half.exists()
    assert len(sessions.list()) == 2


def test_48_look_at_a_session_and_no_more(sessions: Sessions) -> None:
    started = sessions.start("cat", stdin=True)
    with ExitStack() as stack:
        readers = [stack.enter_context(sessions.attach(started)) for _ in range(48)]
        for request in (
            sessionwire.encode_session_attach(started),
            sessionwire.encode_session_logs(started, follow=True),
            sessionwire.encode_session_send(started),
        ):
            with pytest.raises(Refused) as caught:
                sessions.ask(request)
            assert caught.value.code == "busy"
        assert sessions.record(started).number(wire.SESSION_READERS) == 48
        sessions.stop(started)
        for reader in readers:
            assert reader.to_exit().number(wire.EXIT_SIGNAL) == signal.SIGTERM


def test_a_folder_removed_by_hand_leaves_no_keeper(sessions: Sessions) -> None:
    started = sessions.start("sleep", "60")
    record = sessions.record(started)
    shutil.rmtree(sessions.folder / started)
    assert sessions.list() == {}
    os.kill(record.number(wire.SESSION_PID), signal.SIGKILL)
    wait_gone(record.number(wire.SESSION_KEEPER_PID))


def test_a_list_in_the_middle_of_a_removal(sessions: Sessions) -> None:
    """Its keeper has not gone yet, its status has: still a record that says what it is."""
    going = sessions.start("sleep", "60")
    record = sessions.record(going)
    keeper = record.number(wire.SESSION_KEEPER_PID)
    os.kill(keeper, signal.SIGSTOP)
    try:
        (sessions.folder / going / "status").unlink()
        assert sessions.record(going).text(wire.SESSION_STATUS) == "failed"
    finally:
        os.kill(keeper, signal.SIGCONT)
    os.kill(record.number(wire.SESSION_PID), signal.SIGKILL)
    wait_gone(keeper)


def test_a_keeper_that_hangs_holds_up_no_list(sessions: Sessions) -> None:
    hanging, other = sessions.start("sleep", "60"), sessions.start("sleep", "60")
    keeper = sessions.record(hanging).number(wire.SESSION_KEEPER_PID)
    os.kill(keeper, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        records = sessions.list()
        assert time.monotonic() - begun < 25, "as long as who reads a log waits for a keeper"
        assert records[hanging].text(wire.SESSION_STATUS) == "running"
        assert records[hanging].text(wire.SESSION_LAST_ERROR) == "the session's keeper does not answer"
        assert wire.SESSION_LAST_ERROR not in records[other]
    finally:
        os.kill(keeper, signal.SIGCONT)
    assert wire.SESSION_LAST_ERROR not in sessions.record(hanging)


def test_random_requests_do_no_harm(sessions: Sessions) -> None:
    """Fields of every tag, right, wrong or nonsense, for sessions that run and that do not."""
    dice = random.Random(5)
    running, ended = sessions.start("cat", stdin=True), sessions.start("echo", "hello")
    ids: list[str | bytes] = [running, ended, ID, "x", b"\0" * 32]
    numbers: list[int | str | bytes] = [0, 1, 2, 3, 7, 64, 65, 80, 65536, (1 << 32) - 1, (1 << 64) - 1]
    texts: list[str | bytes] = ["", "a", "b=c", "/", "x" * 300, b"\xff\0"]
    kinds = [kind for kind in range(wire.FRAME_SESSION_START, 0x4C) if kind != wire.FRAME_SESSION_REMOVE]
    for _ in range(400):
        fields: list[tuple[int, bytes | str | int]] = [(wire.SESSION_ID, dice.choice(ids))]
        for _ in range(dice.randrange(6)):
            fields.append((dice.randrange(40), dice.choice([*numbers, *texts])))
        payload = encode_fields(fields)
        if dice.random() < 0.2:
            payload = payload[: dice.randrange(len(payload) + 1)]
        with Connection(sessions.agent, encode_frame(dice.choice(kinds), payload)) as connection:
            for _ in range(dice.randrange(3)):
                inner = encode_fields([(dice.randrange(4), dice.choice([*numbers, *texts]))])
                with suppress(ConnectionError):
                    connection.send(encode_frame(dice.randrange(0x20, 0x50), inner))
            connection.socket.settimeout(0.01)
            with suppress(Refused, ConnectionError, TimeoutError):
                connection.next()
    for record in sessions.list().values():
        assert record.text(wire.SESSION_STATUS) in ("running", "stopping", "exited", "failed")
    started = sessions.start("true")  # and life goes on
    assert sessions.ended(started).number(wire.SESSION_EXIT_CODE) == 0
