"""The codec: what goes in comes out, whatever the pieces; hostile bytes only ever raise WireError."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.guest import wire
from banger.guest.wire import Fields, Frame, FrameReader, WireError

ROOT = Path(__file__).resolve().parents[3]
HEADER = ROOT / "agent" / "src" / "wire.h"
SOURCES = ROOT / "src"

frames = st.builds(Frame, st.integers(0, 255), st.binary(max_size=200))
values = st.one_of(st.binary(max_size=100), st.text(max_size=50), st.integers(0, 2**64 - 1))
fields = st.lists(st.tuples(st.integers(0, 255), values), max_size=20)


def as_bytes(value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        return value.to_bytes(8, "little")
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


@given(st.lists(frames, max_size=10), st.integers(1, 64))
def test_frames_arrive_whatever_the_pieces(sent: list[Frame], size: int) -> None:
    stream = b"".join(wire.encode_frame(*frame) for frame in sent)
    reader, got = FrameReader(), []
    for start in range(0, len(stream), size):
        got += reader.feed(stream[start : start + size])
    assert got == sent
    assert reader.is_empty


@given(fields)
def test_fields_come_back(sent: list[tuple[int, bytes | str | int]]) -> None:
    assert wire.decode_fields(wire.encode_fields(sent)) == [(tag, as_bytes(value)) for tag, value in sent]


@given(st.binary(max_size=300))
def test_hostile_bytes_only_raise_wire_error(data: bytes) -> None:
    try:
        FrameReader().feed(data)
    except WireError:
        pass
    try:
        parsed = Fields(data)
        for tag in range(256):
            assert parsed.text(tag).isprintable()
            parsed.number(tag)
    except WireError:
        pass


@given(fields, st.integers(0, 400))
def test_cut_off_fields_never_read_past_their_end(
    sent: list[tuple[int, bytes | str | int]], length: int
) -> None:
    payload = wire.encode_fields(sent)[:length]
    try:
        decoded = wire.decode_fields(payload)
    except WireError:
        return
    assert wire.encode_fields(decoded) == payload


def test_lengths_are_bounded() -> None:
    with pytest.raises(WireError):
        FrameReader().feed(b"\x01\x00\x01\x00\x21")
    with pytest.raises(WireError):
        FrameReader().feed(b"\x01\x00\x10\x00\x11")
    with pytest.raises(WireError):
        wire.encode_frame(wire.FRAME_STDIN, b"x" * 65537)
    assert FrameReader().feed(wire.encode_frame(wire.FRAME_EXEC, b"x" * 1048576))


def test_text_of_a_guest_is_made_printable() -> None:
    parsed = Fields(wire.encode_fields([(1, b"a\x1b[2Jb\nc\xff"), (2, "x" * 9000)]))
    assert parsed.text(1) == "a�[2Jb�c�"
    assert len(parsed.text(2)) == 4096
    assert (parsed.text(3), parsed.number(3)) == ("", 0)


def test_exec_requests_are_checked() -> None:
    for argv, env in ([], {}), (["a\0"], {}), (["a"], {"": "x"}), (["a"], {"A=": "x"}), (["a"], {"A": "\0"}):
        with pytest.raises(WireError):
            wire.encode_exec(argv, env)
    with pytest.raises(WireError):
        wire.encode_exec(["x"] * 4097)
    with pytest.raises(WireError):
        wire.encode_exec(["x" * 1048577])


@given(st.text(st.characters(exclude_characters="\0"), min_size=1), st.booleans(), st.booleans())
def test_exec_requests_carry_what_was_asked(argument: str, terminal: bool, stdin: bool) -> None:
    try:
        argument.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return
    frame = wire.encode_exec(["sh", argument], {"K": "a=b"}, cwd="/x", terminal=terminal, stdin=stdin)
    (decoded,) = FrameReader().feed(frame)
    assert decoded.type == wire.FRAME_EXEC
    got = wire.decode_fields(decoded.payload)
    assert [value for tag, value in got if tag == wire.EXEC_ARGUMENT] == [
        b"sh",
        argument.encode("utf-8", "surrogateescape"),
    ]
    assert (wire.EXEC_ENV, b"K=a=b") in got
    assert Fields(decoded.payload).number(wire.EXEC_FLAGS) == terminal + 2 * stdin


def test_constants_are_those_of_the_agent() -> None:
    pattern = re.compile(r"^#define ([A-Z0-9_]+) (0x[0-9a-f]+|[0-9]+)$", re.MULTILINE)
    in_c = {name: int(value, 0) for name, value in pattern.findall(HEADER.read_text())}
    in_python = {name: value for name, value in vars(wire).items() if name.isupper() and name[0] != "_"}
    assert in_c == in_python
    assert len(in_c) > 60


def test_a_monitors_answer_is_whole_or_an_error() -> None:
    assert wire.connect_line(1024) == b"CONNECT 1024\n"
    assert [wire.connected(b"OK 7\n"[:count]) for count in range(6)] == [False] * 5 + [True]
    for other in (b"no\n", b"\n", b"OK" + b"7" * 30):
        with pytest.raises(wire.WireError, match="the monitor answers"):
            wire.connected(other)


def test_the_codec_is_cheap_to_import() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCES)!r}); before = set(sys.modules);"
        "import banger.guest.wire;"
        "print(*sorted(name for name in set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"asyncio", "msgspec", "click", "dataclasses", "socket", "ssl", "logging"}
    assert not heavy & set(run.stdout.split())
