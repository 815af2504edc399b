"""References: full id, exact name, unique prefix, in that order; against a naive oracle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.model.references import resolve

IDS = st.text(alphabet="ab", min_size=4, max_size=4)
NAMES = st.text(alphabet="ab", min_size=1, max_size=5)
LISTINGS = st.lists(st.tuples(IDS, NAMES), max_size=8, unique_by=(lambda pair: pair[0], lambda pair: pair[1]))


@given(NAMES | IDS, LISTINGS)
def test_the_order_is_id_name_prefix(reference: str, listing: list[tuple[str, str]]) -> None:
    ids = [i for i, _ in listing if i == reference]
    names = [i for i, n in listing if n == reference]
    prefixes = [i for i, _ in listing if i.startswith(reference)]
    expected = ids or names or prefixes
    if len(expected) == 1:
        assert resolve(reference, listing) == expected[0]
        return
    with pytest.raises(BangerError) as caught:
        resolve(reference, listing)
    if expected:
        assert caught.value.code is ErrorCode.AMBIGUOUS
        assert {c["id"] for c in caught.value.data["candidates"]} == set(prefixes)
    else:
        assert caught.value.code is ErrorCode.NOT_FOUND


def test_a_name_that_looks_like_a_prefix_wins_over_the_prefix() -> None:
    assert resolve("abc", [("abcdef", "one"), ("123456", "abc")]) == "123456"


def test_an_ambiguous_prefix_lists_the_candidates() -> None:
    with pytest.raises(BangerError) as caught:
        resolve("ab", [("abc" + "0" * 61, "calm-otter"), ("abd" + "0" * 61, "brave-fox"), ("c" * 64, "x")])
    assert caught.value.brief == "'ab' fits 2 VMs"
    assert caught.value.hint == "it may be brave-fox (abd000000000), calm-otter (abc000000000)"


def test_candidates_that_agree_in_what_is_shown_are_shown_longer() -> None:
    with pytest.raises(BangerError) as caught:
        resolve("a", [("a" * 20 + "b", "one"), ("a" * 20 + "c", "two")])
    assert caught.value.hint == f"it may be one ({'a' * 20}b), two ({'a' * 20}c)"


def test_many_candidates_are_counted_not_all_shown() -> None:
    with pytest.raises(BangerError) as caught:
        resolve("a", [(f"a{n:02}", f"vm-{n:02}") for n in range(15)])
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(" and 5 more")
    assert len(caught.value.data["candidates"]) == 15


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(BangerError) as caught:
        resolve("calm-oter", [("1" * 64, "calm-otter"), ("2" * 64, "xyz")])
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert caught.value.brief == "no VM is called 'calm-oter'"
    assert caught.value.hint == "did you mean calm-otter?"


def test_an_empty_reference_is_no_prefix_of_everything() -> None:
    with pytest.raises(BangerError) as caught:
        resolve("", [("1" * 64, "calm-otter")])
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_hostile_references_stay_short_and_on_one_line() -> None:
    with pytest.raises(BangerError) as caught:
        resolve("\x1b[31m\n" * 10_000, [("1" * 64, "calm-otter")], what="image")
    assert len(caught.value.brief) < 500
    assert "\n" not in caught.value.brief
    assert "\x1b" not in caught.value.brief
