"""Tags, filters and signals of sessions, as CLI and daemon read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.model.sessions import MAX_TAGS, has_tags, parse_tags, signal_number, tag_words


def test_tags_are_words_or_pairs() -> None:
    assert parse_tags(["role=web", "keep", "url=a=b", "keep=2"]) == {"role": "web", "keep": "2", "url": "a=b"}


@pytest.mark.parametrize("word", ["", "=x", "a\nb=c", "k=\x1b[m", " k=v", "k" * 300, "ü" * 200])
def test_what_is_no_tag_is_said(word: str) -> None:
    with pytest.raises(BangerError) as caught:
        parse_tags([word])
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.brief.isprintable()


def test_too_many_tags() -> None:
    parse_tags([f"t{number}" for number in range(MAX_TAGS)])
    with pytest.raises(BangerError):
        parse_tags([f"t{number}" for number in range(MAX_TAGS + 1)])


@given(
    st.dictionaries(
        st.from_regex(r"[a-z.]{1,9}", fullmatch=True), st.from_regex(r"[a-z=]{0,9}", fullmatch=True)
    )
)
def test_tags_are_read_as_they_are_written(tags: dict[str, str]) -> None:
    assert parse_tags(tag_words(tags)) == tags
    assert has_tags(tags, tag_words(tags))
    assert has_tags(tags, tags)


def test_filters() -> None:
    tags = {"role": "web", "keep": ""}
    assert has_tags(tags, [])
    assert has_tags(tags, ["role", "keep", "role=web", "keep="])
    assert not has_tags(tags, ["role=db"])
    assert not has_tags(tags, ["role", "other"])
    assert not has_tags(tags, ["role="])


@pytest.mark.parametrize(
    ("name", "number"), [("TERM", 15), ("sigkill", 9), ("Int", 2), ("15", 15), ("64", 64), ("USR1", 10)]
)
def test_signals(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["", "0", "65", "-9", "NOPE", "1" * 50, "SIG", "९"])
def test_what_is_no_signal(name: str) -> None:
    with pytest.raises(BangerError) as caught:
        signal_number(name)
    assert caught.value.hint
