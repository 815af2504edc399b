"""GuestSessions against guests that lie: records, lists, refusals, silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.guest import wire
from banger.guest.errors import GuestUnreachable
from banger.guest.sessions import GuestSessions, parse_session
from banger.guest.wire import WireError, encode_fields, encode_frame

pytestmark = pytest.mark.anyio

ID = "ab" * 16
OTHER = "cd" * 16
Field = tuple[int, bytes | str | int]


def record(session_id: str = ID, status: str = "running", *more: Field) -> bytes:
    fields: list[Field] = [(wire.SESSION_ID, session_id), (wire.SESSION_NAME, "build")]
    fields += [(wire.SESSION_STATUS, status), (wire.SESSION_ARGUMENT, "make"), (wire.SESSION_ARGUMENT, "-j4")]
    return encode_fields([*fields, *more])


def hello(features: str = "exec sessions") -> bytes:
    fields: list[Field] = [(1, 1), (2, features), (3, "1"), (4, "b")]
    return encode_frame(wire.FRAME_HELLO, encode_fields(fields))


@asynccontextmanager
async def guest(
    folder: Path, answers: Sequence[bytes], *, greeting: bytes = b""
) -> AsyncIterator[GuestSessions]:
    """Greets, reads one request, says these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"OK 1\n" + (greeting or hello()))
        await reader.read(65536)
        writer.write(b"".join(answers))
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "v.sock")
    try:
        yield GuestSessions(str(folder), vm_id="f" * 64, vm_name="web")
    finally:
        server.close()


def test_a_record_has_all_of_the_models_fields() -> None:
    session = parse_session(
        record(
            ID,
            "exited",
            (wire.SESSION_FLAGS, wire.SESSION_FLAG_STDIN),
            (wire.SESSION_ENV, "A=b=c"),
            (wire.SESSION_TAG, "role=web"),
            (wire.SESSION_TAG, "keep"),
            (wire.SESSION_PID, 77),
            (wire.SESSION_EXIT_CODE, 0),
            (wire.SESSION_CREATED, 1_700_000_000),
            (wire.SESSION_STATE_DIR, f"/var/lib/banger/sessions/{ID}"),
            (wire.SESSION_LAUNCH_STAGE, "running"),
            (wire.SESSION_STDOUT_BYTES, 5),
        ),
        vm_id="f" * 64,
    )
    assert (session.command, session.args, session.env) == ("make", ("-j4",), {"A": "b=c"})
    assert session.tags == {"role": "web", "keep": ""}
    assert (session.stdin_mode, session.attach_mode, session.attachable) == ("pipe", "pipe", True)
    assert session.stdout_log_path == f"/var/lib/banger/sessions/{ID}/stdout.log"
    assert session.created_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    shown = msgspec.to_builtins(session)
    assert shown["exit_code"] == 0, "0 is shown"
    assert "exit_signal" not in shown, "what has no value is left out"
    assert "started_at" not in shown


def test_death_by_signal_is_128_and_it() -> None:
    session = parse_session(record(ID, "exited", (wire.SESSION_EXIT_SIGNAL, 15)), vm_id="f")
    assert (session.exit_code, session.exit_signal) == (143, 15)


def test_what_was_never_launched_cannot_be_attached_to() -> None:
    failed = record(
        ID, "failed", (wire.SESSION_LAUNCH_STAGE, "exec"), (wire.SESSION_LAUNCH_MESSAGE, "no\x1b")
    )
    session = parse_session(failed, vm_id="f")
    assert not session.attachable
    assert session.launch_message == "no\N{REPLACEMENT CHARACTER}"
    ended = record(ID, "failed", (wire.SESSION_LAUNCH_STAGE, "running"))
    assert parse_session(ended, vm_id="f").reattachable


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        record("../../../etc/passwd"),
        record(ID.upper()),
        record(ID, "fine"),
        record(ID, "running", (wire.SESSION_PID, "no number")),
        record(ID, "running", (wire.SESSION_CREATED, 1 << 60)),
        record(ID, "running") + b"\x01",
    ],
)
def test_what_is_no_record(payload: bytes) -> None:
    with pytest.raises(WireError):
        parse_session(payload, vm_id="f")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_wire_error(tail: bytes) -> None:
    try:
        session = parse_session(record() + tail, vm_id="f")
    except WireError:
        return
    assert msgspec.json.decode(msgspec.json.encode(session))


async def test_a_list_is_in_the_order_of_their_beginning(tmp_path: Path) -> None:
    answers = [
        encode_frame(wire.FRAME_SESSION, record(OTHER, "running", (wire.SESSION_CREATED, 20))),
        encode_frame(wire.FRAME_SESSION, record(ID, "running", (wire.SESSION_CREATED, 10))),
        encode_frame(wire.FRAME_OK),
    ]
    async with guest(tmp_path, answers) as sessions:
        assert [session.id for session in await sessions.list()] == [ID, OTHER]


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [encode_frame(wire.FRAME_SESSION, record())],
        [encode_frame(wire.FRAME_SESSION, record()), encode_frame(wire.FRAME_SESSION, record())],
        [encode_frame(wire.FRAME_SESSION, record(f"{n:032x}")) for n in range(1100)],
        [encode_frame(wire.FRAME_STDOUT, b"x")],
        [encode_frame(wire.FRAME_SESSION, b"\x01")],
    ],
)
async def test_lists_that_lie(tmp_path: Path, answers: list[bytes]) -> None:
    async with guest(tmp_path, answers) as sessions:
        with pytest.raises(GuestUnreachable):
            await sessions.list()


async def test_another_ones_record_is_refused(tmp_path: Path) -> None:
    answers = [encode_frame(wire.FRAME_OK, record(OTHER))]
    async with guest(tmp_path, answers) as sessions:
        with pytest.raises(GuestUnreachable):
            await sessions.start(ID, ["true"], name="x", env={}, tags={})
        with pytest.raises(GuestUnreachable):
            await sessions.stop(ID, grace_s=1)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("exists", ErrorCode.ALREADY_EXISTS),
        ("busy", ErrorCode.BUSY),
        ("running", ErrorCode.IN_USE),
        ("not_running", ErrorCode.WRONG_STATE),
        ("not_found", ErrorCode.NOT_FOUND),
        ("failed", ErrorCode.GUEST_ERROR),
        ("never heard of", ErrorCode.GUEST_ERROR),
    ],
)
async def test_refusals_have_their_code(tmp_path: Path, code: str, expected: ErrorCode) -> None:
    answers = [encode_frame(wire.FRAME_ERROR, encode_fields([(1, code), (2, "so it is\x1b")]))]
    async with guest(tmp_path, answers) as sessions:
        with pytest.raises(BangerError) as caught:
            await sessions.remove(ID, force=False)
    assert caught.value.code is expected
    assert caught.value.brief.isprintable()


@pytest.mark.parametrize("greeting", [hello("exec"), hello()])
async def test_an_old_agent_is_named_with_what_to_do(tmp_path: Path, greeting: bytes) -> None:
    answers = [encode_frame(wire.FRAME_ERROR, encode_fields([(1, "unsupported"), (2, "what?")]))]
    async with guest(tmp_path, answers, greeting=greeting) as sessions:
        with pytest.raises(BangerError) as caught:
            await sessions.list()
    assert caught.value.hint == "banger vm restart web"


async def test_requests_that_cannot_be_made(tmp_path: Path) -> None:
    sessions = GuestSessions(str(tmp_path), vm_id="f", vm_name="web")
    for argv, env in ((["a\0b"], {}), ([], {}), (["x"], {"a=b": "c"}), (["x" * 2_000_000], {})):
        with pytest.raises(BangerError) as caught:
            await sessions.start(ID, argv, name="x", env=env, tags={})
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT


async def test_the_launch_log_is_bounded_and_printable(tmp_path: Path) -> None:
    noise = [encode_frame(wire.FRAME_STDERR, b"x" * 60000)] * 5
    answers = [*noise, encode_frame(wire.FRAME_STDERR, b"\n\x1b[mend\n"), encode_frame(wire.FRAME_OK)]
    async with guest(tmp_path, answers) as sessions:
        said = await sessions.error_log(ID)
    assert said.endswith("\n\N{REPLACEMENT CHARACTER}[mend\n")
    assert len(said) <= 16 << 10
