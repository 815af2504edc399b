"""Nothing that a guest wrote reaches a terminal as more than text."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from banger.cli.escape import LogEscaper, safe, safe_block


@given(st.text())
def test_safe_text_is_printable(text: str) -> None:
    assert safe(text).isprintable()
    assert safe_block(text).replace("\n", "").replace("\t", "").isprintable()


@given(st.binary(), st.integers(1, 7))
def test_pieces_make_no_difference(data: bytes, size: int) -> None:
    whole, cut = LogEscaper(), LogEscaper()
    at_once = whole.feed(data, final=True)
    in_pieces = "".join(cut.feed(data[at : at + size]) for at in range(0, len(data), size))
    assert in_pieces + cut.feed(b"", final=True) == at_once


def test_examples() -> None:
    assert safe("\x1b[2J") == "\\x1b[2J"
    assert safe("a\nb") == "a\\nb"
    assert safe("\u202eevil") == "\\u202eevil"
    assert safe("\x9b31m") == "\\x9b31m"
    assert LogEscaper().feed("é\r\n\rx\xff".encode("latin-1"), final=True) == "\\xe9\n\\rx\\xff"
