"""Sizes: each fault its own message, printing and reading agree, limits are inclusive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.model.sizes import (
    GIB,
    KIB,
    MAX_SIZE,
    MIB,
    check_vcpu_count,
    format_size,
    parse_disk_size,
    parse_memory_mib,
    parse_size,
)


def refused(text: str, *, minimum: int = 1) -> str:
    with pytest.raises(BangerError) as caught:
        parse_size(text, what="disk size", minimum=minimum)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.brief.startswith("disk size: ")
    assert caught.value.hint
    return caught.value.brief


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", MIB),
        ("2048", 2 * GIB),
        ("4K", 4 * KIB),
        ("4k", 4 * KIB),
        ("4kib", 4 * KIB),
        ("512M", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("8g", 8 * GIB),
        ("8GIB", 8 * GIB),
        (" \t8G\n", 8 * GIB),
        ("008G", 8 * GIB),
        ("128G", MAX_SIZE),
        ("131072", MAX_SIZE),
    ],
)
def test_reads(text: str, size: int) -> None:
    assert parse_size(text, what="disk size") == size


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is missing"),
        ("  ", "is missing"),
        ("8T", "bad suffix 'T'"),
        ("8GB", "bad suffix 'GB'"),
        ("8 G", "bad suffix ' G'"),
        ("8\u212a", "bad suffix"),  # the Kelvin sign lower-cases to k
        ("0", "not positive"),
        ("-1", "not positive"),
        ("-0G", "not positive"),
        ("000", "not positive"),
        ("129G", "too big"),
        ("134217729K", "too big"),
        ("9" * 10_000, "too big"),
        ("G", "is not a size"),
        ("many", "is not a size"),
        ("+5", "is not a size"),
        ("-", "is not a size"),
        ("٣G", "is not a size"),
        ("1.5G", "not a whole number"),
        ("1,5G", "not a whole number"),
    ],
)
def test_each_fault_has_its_own_message(text: str, part: str) -> None:
    assert part in refused(text)


def test_minima_are_inclusive() -> None:
    assert parse_memory_mib("128M") == 128
    assert parse_disk_size("64M") == 64 * MIB
    with pytest.raises(BangerError, match="too small") as caught:
        parse_memory_mib("131071K")
    assert caught.value.hint == "memory must be at least 128M"
    with pytest.raises(BangerError, match="too small") as caught:
        parse_disk_size("63M")
    assert caught.value.hint == "disk size must be at least 64M"


def test_memory_is_whole_mebibytes() -> None:
    with pytest.raises(BangerError, match="whole number of MiB"):
        parse_memory_mib("200001K")


@given(st.integers(min_value=1, max_value=MAX_SIZE // KIB))
def test_what_is_printed_reads_back(kibibytes: int) -> None:
    size = kibibytes * KIB
    assert parse_size(format_size(size), what="x") == size


@given(st.integers(min_value=0, max_value=MAX_SIZE * 4))
def test_printing_takes_the_largest_exact_unit(size: int) -> None:
    text = format_size(size)
    units = {"G": GIB, "M": MIB, "K": KIB}
    unit = units.get(text[-1], 1)
    assert int(text.rstrip("GMK")) * unit == size
    assert size == 0 or all(size % larger for larger in units.values() if larger > unit)


@given(st.text(max_size=60) | st.text(alphabet="0123456789kKmMgGiIbB+-. ", max_size=12))
def test_any_text_gives_a_size_in_range_or_a_clear_error(text: str) -> None:
    outcome: int | BangerError
    try:
        outcome = parse_size(text, what="disk size", minimum=KIB)
    except BangerError as error:
        outcome = error
    if isinstance(outcome, BangerError):
        assert outcome.code is ErrorCode.INVALID_ARGUMENT
        assert "\n" not in outcome.brief
        assert len(outcome.brief) < 600
    else:
        assert KIB <= outcome <= MAX_SIZE


@pytest.mark.parametrize("count", [0, -1, 33])
def test_vcpu_counts_out_of_range(count: int) -> None:
    with pytest.raises(BangerError):
        check_vcpu_count(count)
    assert check_vcpu_count(32) == 32
