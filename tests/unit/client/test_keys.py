"""Detach keys: how they are written, and that nothing else that is typed is lost."""

from __future__ import annotations

import os
import pty
import termios
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.client.keys import DetachFilter, KeyTerminal, parse_detach_keys
from banger.errors import BangerError, ErrorCode

KEYS = b"\x10\x11"


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", KEYS),
        ("ctrl-a,d", b"\x01d"),
        ("CTRL-\\", b"\x1c"),
        ("ctrl-@,ctrl-[,ctrl-_", b"\0\x1b\x1f"),
        ("a,b,c", b"abc"),
        ("", b""),
    ],
)
def test_keys_as_docker_writes_them(text: str, keys: bytes) -> None:
    assert parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", [",", "ctrl-", "ctrl-1", "ctrl-pq", "ab", "ctrl-p,", "é", "\x1b", "ctrl-ß"])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(BangerError) as caught:
        parse_detach_keys(text)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.brief.isprintable()


def test_a_first_key_is_held_and_passed_on_with_the_next() -> None:
    keys = DetachFilter(KEYS)
    assert keys.feed(b"ls\x10") == b"ls"
    assert keys.feed(b"x") == b"\x10x"
    assert not keys.detached


def test_keys_that_come_apart() -> None:
    keys = DetachFilter(KEYS)
    assert keys.feed(b"a\x10") == b"a"
    assert keys.feed(b"\x11rest") == b""
    assert keys.detached


def test_the_key_twice_then_the_whole() -> None:
    keys = DetachFilter(KEYS)
    assert keys.feed(b"\x10\x10\x11") == b"\x10"
    assert keys.detached


def test_no_keys_no_detaching() -> None:
    keys = DetachFilter(b"")
    assert keys.feed(KEYS) == KEYS
    assert not keys.detached


@given(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"aab"]), min_size=1).map(b"".join),
    st.lists(st.lists(st.sampled_from(b"abc"), max_size=6).map(bytes)),
)
def test_all_that_is_typed_goes_on_until_the_keys(keys: bytes, typed: list[bytes]) -> None:
    """Against the plain meaning: everything before the first time that the keys appear in what was typed."""
    filtered = DetachFilter(keys)
    passed = b""
    for piece in typed:
        if not filtered.detached:
            passed += filtered.feed(piece)
    whole = b"".join(typed)
    at = whole.find(keys)
    if at >= 0:
        assert filtered.detached
        assert passed == whole[:at]
    else:
        assert not filtered.detached
        held = whole[len(passed) :]
        assert whole.startswith(passed)
        assert keys.startswith(held)


@pytest.mark.parametrize("lines", [True, False])
def test_the_terminal_is_put_back(lines: bool) -> None:
    main, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(terminal)
        with suppress(RuntimeError), KeyTerminal(terminal, lines=lines, keys=KEYS) as mode:
            now = termios.tcgetattr(terminal)
            assert bool(now[3] & termios.ICANON) == lines
            assert bool(now[3] & termios.ECHO) == lines
            assert now[3] & termios.ISIG
            assert not now[0] & termios.IXON
            mode.enter()
            raise RuntimeError
        assert termios.tcgetattr(terminal) == before
    finally:
        os.close(main)
        os.close(terminal)


def test_detach_keys_arrive_in_the_middle_of_a_line() -> None:
    main, terminal = pty.openpty()
    try:
        with KeyTerminal(terminal, lines=True, keys=KEYS):
            os.write(main, b"half\x10\x11")
            assert os.read(terminal, 100) == b"half\x10\x11"
    finally:
        os.close(main)
        os.close(terminal)
