"""Names: the rule of SPEC §1, checked against a regular expression of its own, and generated names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import banger.errors
from banger.errors import BangerError, ErrorCode
from banger.model.names import generate_name, name_fault, validate_name

RULE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@given(st.text(alphabet="abz09-AZ_. \nä", max_size=70) | st.text(max_size=70))
def test_a_name_is_valid_exactly_when_the_rule_says_so(text: str) -> None:
    if RULE.fullmatch(text):
        assert validate_name(text) == text
        return
    with pytest.raises(BangerError) as caught:
        validate_name(text)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.hint
    assert "\n" not in caught.value.brief
    assert caught.value.brief.isascii()


@given(st.from_regex(RULE, fullmatch=True))
def test_every_name_that_fits_the_rule_passes_unchanged(text: str) -> None:
    assert validate_name(text) == text


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("", "empty"),
        ("a" * 64, "64 characters"),
        ("Otter", "'O'"),
        ("a b", "' '"),
        ("a\nb", r"'\n'"),
        ("ä", r"'\xe4'"),
        ("-a", "begins"),
        ("a-", "ends"),
        ("../x", "'.'"),
    ],
)
def test_each_fault_is_said(name: str, part: str) -> None:
    fault = name_fault(name)
    assert fault is not None
    assert part in fault


@given(st.integers(min_value=1, max_value=50))
def test_generated_names_are_valid_and_free(count: int) -> None:
    taken: set[str] = set()
    for _ in range(count):
        name = generate_name(taken)
        assert name not in taken
        validate_name(name)
        taken.add(name)


def test_generating_ends_when_every_plain_name_is_taken() -> None:
    class AllPlain:
        def __contains__(self, name: object) -> bool:
            return str(name).count("-") == 1

    assert re.fullmatch(r"[a-z]+-[a-z]+-\d+", generate_name(AllPlain()))


def test_the_import_free_modules_import_nothing_heavy() -> None:
    modules = ("names", "sizes", "references", "durations")
    heavy = {"msgspec", "secrets", "difflib", "asyncio", "json", "random", "hashlib"}
    source = Path(banger.errors.__file__).parents[1]
    script = (
        f"import sys; sys.path.insert(0, {str(source)!r})\n"
        f"import {', '.join(f'banger.model.{module}' for module in modules)}\n"
        f"sys.exit(' '.join(sorted({heavy!r} & set(sys.modules))) or 0)\n"
    )
    # -S: a virtual environment's .pth files would import what they like
    argv = [sys.executable, "-I", "-S", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
