"""Durations in Go's spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.model.durations import MAX_DURATION_S, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("+0", 0.0),
        ("0s", 0.0),
        ("24h", 86_400.0),
        ("2h30m", 9_000.0),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("250ms", 0.25),
        ("1h1m1s", 3_661.0),
        ("10us", 1e-5),
        ("10µs", 1e-5),
        (" 10s ", 10.0),
    ],
)
def test_reads(text: str, seconds: float) -> None:
    assert parse_duration(text, what="poll") == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "missing"),
        ("10", "no unit"),
        ("1h10", "no unit"),
        ("-5s", "negative"),
        ("5d", "unknown unit 'd'"),
        ("1h 5m", "unknown unit"),
        ("s", "not a duration"),
        (".s", "not a duration"),
        ("1.2.3s", "not a duration"),
        ("+", "not a duration"),
        ("99999999h", "too long"),
        ("1e5s", "unknown unit"),
        ("nan", "not a duration"),
        ("1" * 200 + "s", "201 characters"),
    ],
)
def test_each_fault_is_said(text: str, part: str) -> None:
    with pytest.raises(BangerError) as caught:
        parse_duration(text, what="poll")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert part in caught.value.brief


@given(st.integers(min_value=0, max_value=10**9))
def test_what_is_printed_reads_back(milliseconds: int) -> None:
    text = format_duration(milliseconds / 1000)
    assert round(parse_duration(text, what="x") * 1000) == milliseconds


@given(st.text(max_size=30) | st.text(alphabet="0123456789.hmsnuµ+- ", max_size=30))
def test_any_text_gives_a_duration_or_a_clear_error(text: str) -> None:
    outcome: float | BangerError
    try:
        outcome = parse_duration(text, what="poll")
    except BangerError as error:
        outcome = error
    if isinstance(outcome, BangerError):
        assert outcome.code is ErrorCode.INVALID_ARGUMENT
        assert "\n" not in outcome.brief
    else:
        assert 0 <= outcome <= MAX_DURATION_S
