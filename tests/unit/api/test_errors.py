"""Errors on the wire: the table is whole, and every exception becomes a body that encodes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.api.errors import MAX_DETAILS, MEANINGS, ErrorBody, as_banger_error, error_body, http_status
from banger.errors import BangerError, ErrorCode


def test_every_code_has_one_row() -> None:
    assert set(MEANINGS) == set(ErrorCode)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_status_is_an_error(code: ErrorCode) -> None:
    assert 400 <= http_status(code) <= 599


def test_a_body_has_what_the_error_had_and_nothing_empty() -> None:
    error = BangerError(
        ErrorCode.NOT_FOUND, "no VM is called 'x'", hint="did you mean y?", data={"near": ["y"]}
    )
    encoded = msgspec.json.encode(error_body(error, op_id="0123456789abcdef"))
    assert msgspec.json.decode(encoded) == {
        "code": "not_found",
        "brief": "no VM is called 'x'",
        "hint": "did you mean y?",
        "data": {"near": ["y"]},
        "op_id": "0123456789abcdef",
    }
    bare = msgspec.json.encode(error_body(BangerError(ErrorCode.BUSY, "busy")))
    assert msgspec.json.decode(bare) == {"code": "busy", "brief": "busy"}


def test_a_bug_is_internal_and_says_where_to_look() -> None:
    body = error_body(KeyError("missing"), "0123456789abcdef")
    assert body.code is ErrorCode.INTERNAL
    assert body.brief == "internal error (KeyError) in operation 0123456789abcdef"
    assert "log" in body.hint
    assert "op 0123456789abcdef" in body.hint


def test_a_group_is_its_first_known_error_with_the_others_joined() -> None:
    group = ExceptionGroup(
        "tasks",
        [
            OSError(5, "broken"),
            ExceptionGroup(
                "inner", [BangerError(ErrorCode.NO_SPACE, "full", details="first", hint="make room")]
            ),
            BangerError(ErrorCode.BUSY, "busy"),
        ],
    )
    error = as_banger_error(group)
    assert (error.code, error.brief, error.hint) == (ErrorCode.NO_SPACE, "full", "make room")
    assert error.details == "first\nalso: [Errno 5] broken\nalso: busy"


TEXT = st.text(max_size=50) | st.text(alphabet="\x00\x1b\n\r\ud800\udcff a", max_size=50)
DATA = st.dictionaries(
    TEXT,
    st.recursive(
        st.none() | st.floats() | st.integers() | TEXT | st.binary(max_size=5) | st.just(Path("/x")),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)


@given(TEXT, TEXT, TEXT, DATA)
def test_whatever_is_inside_encodes_and_stays_one_line(
    brief: str, hint: str, details: str, data: dict[str, object]
) -> None:
    error = BangerError(ErrorCode.GUEST_ERROR, brief, hint=hint, details=details, data=data)
    body = msgspec.json.decode(msgspec.json.encode(error_body(error)), type=ErrorBody)
    assert body.brief.isprintable()
    assert body.hint.isprintable()


def test_data_that_contains_itself_is_no_exception() -> None:
    loop: list[object] = []
    loop.append(loop)
    body = error_body(BangerError(ErrorCode.INTERNAL, "x", data={"loop": loop}))
    assert body.data == {"loop": "[[...]]"}


def test_details_are_bounded_and_keep_their_end() -> None:
    body = error_body(BangerError(ErrorCode.INTERNAL, "x", details="a" * 10 * MAX_DETAILS + "end"))
    assert len(body.details) == MAX_DETAILS
    assert body.details.endswith("end")
