"""Debian's control format and version order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError
from banger.image import deb822


def test_paragraphs() -> None:
    text = "# comment\nPackage: a\nDescription: one\n two\n .\n\n\nPackage: b\nEmpty:\n"
    assert list(deb822.parse_paragraphs(text)) == [
        {"package": "a", "description": "one\ntwo\n."},
        {"package": "b", "empty": ""},
    ]


@pytest.mark.parametrize("text", [" continuation first", "no colon here", ": no name", "two words: x"])
def test_broken_paragraphs_are_refused(text: str) -> None:
    with pytest.raises(BangerError):
        deb822.parse_paragraph(text)


def test_finding_by_exact_value() -> None:
    index = b"Package: a\nX: 1\n\nPackage: ab\nX: 2\n\nSource: y\nPackage: a\nX: 3\n"
    assert [found["x"] for found in deb822.find_paragraphs(index, "Package", "a")] == ["1", "3"]
    assert list(deb822.find_paragraphs(index, "Package", "b")) == []


@given(
    st.lists(st.from_regex(r"[a-z]{1,4}", fullmatch=True), max_size=12),
    st.from_regex(r"[a-z]{1,4}", fullmatch=True),
)
def test_finding_agrees_with_parsing_all(names: list[str], wanted: str) -> None:
    text = "\n".join(f"Package: {name}\nNumber: {number}\n" for number, name in enumerate(names))
    found = [entry["number"] for entry in deb822.find_paragraphs(text.encode(), "Package", wanted)]
    assert found == [e["number"] for e in deb822.parse_paragraphs(text) if e["package"] == wanted]


@given(st.text())
def test_any_text_gives_paragraphs_or_a_clear_error(text: str) -> None:
    try:
        for fields in deb822.parse_paragraphs(text):
            assert all(name == name.lower() for name in fields)
    except BangerError:
        pass


def test_sums() -> None:
    digest = "ab" * 32
    assert deb822.parse_sums(f"\n {digest.upper()} 12 main/x") == {"main/x": (digest, 12)}
    for broken in (f" {digest} 12", " ab 12 x", f" {digest} -1 x", f" {digest} ٣ x"):
        with pytest.raises(BangerError):
            deb822.parse_sums(broken)


def test_depends() -> None:
    assert deb822.parse_depends("a, b (= 1.0-1) | c, d:any (>= 2),\n e [amd64]") == [
        ("a", ""),
        ("b", "1.0-1"),
        ("d", ""),
        ("e", ""),
    ]


ORDERED = [
    "0",
    "1.0~~",
    "1.0~",
    "1.0~rc1-1",
    "1.0",
    "1.0-0.1",
    "1.0-1",
    "1.0-1+b1",
    "1.0-10",
    "1.0+a-1",
    "1.2",
    "1.10",
    "1:0.1",
]
"""By dpkg --compare-versions."""


def test_version_order() -> None:
    for i, left in enumerate(ORDERED):
        for j, right in enumerate(ORDERED):
            assert deb822.compare_versions(left, right) == (i > j) - (i < j), (left, right)
    assert deb822.compare_versions("1.0", "1.0-0") == 0
    assert deb822.compare_versions("1.01", "1.1") == 0


version = st.from_regex(r"([0-9]:)?[0-9][0-9a-zA-Z.+~]{0,6}(-[0-9a-z+.~]{1,4})?", fullmatch=True)


@given(version, version, version)
def test_version_order_is_an_order(a: str, b: str, c: str) -> None:
    assert deb822.compare_versions(a, b) == -deb822.compare_versions(b, a)
    if deb822.compare_versions(a, b) <= 0 and deb822.compare_versions(b, c) <= 0:
        assert deb822.compare_versions(a, c) <= 0


def test_a_field_comes_once_and_lines_end_only_where_they_end() -> None:
    with pytest.raises(BangerError, match="'filename' twice"):
        deb822.parse_paragraph("Filename: a\nVersion: 1\nfilename: b\n")
    text = "Package: x\r\nDescription: a\x0bb\x85c\u2028Package: y\n"
    assert deb822.parse_paragraph(text) == {"package": "x", "description": "a\x0bb\x85c\u2028Package: y"}
