"""Where a key is in the text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.config.lines import find_line

TEXT = '''\
# cidr = 1
cidr = 2 # bridge_ip = 3
"bridge_ip" = "x"
a = """
host = "in a text"
[vm_defaults]
"""
b = 'it''s # no'
[ vm_defaults ] # header
  vcpu = 1
cidr = 5
[[file_sync]]
host = 1
[[ file_sync ]]
guest = 1
host = 2
[other]
x = "# \\" [[file_sync]]"
'''


@pytest.mark.parametrize(
    ("key", "table", "number", "line"),
    [
        ("cidr", "", 0, 2),
        ("bridge_ip", "", 0, 3),
        ("host", "", 0, 0),
        ("vcpu", "vm_defaults", 0, 10),
        ("cidr", "vm_defaults", 0, 11),
        ("missing", "vm_defaults", 0, 9),
        ("vm_defaults", "", 0, 9),
        ("host", "file_sync", 1, 13),
        ("host", "file_sync", 2, 16),
        ("guest", "file_sync", 1, 12),
        ("", "file_sync", 2, 14),
        ("host", "file_sync", 3, 0),
    ],
)
def test_finds(key: str, table: str, number: int, line: int) -> None:
    assert find_line(TEXT, key, table=table, number=number) == line


def test_dotted_keys_and_inline_tables() -> None:
    assert find_line("x = 1\nvm_defaults.vcpu = 0\n", "vcpu", table="vm_defaults") == 2
    assert find_line("x = 1\nvm_defaults . 'vcpu' = 0\n", "vcpu", table="vm_defaults") == 2
    assert find_line("x = 1\nvm_defaults = { vcpu = 0 }\n", "vcpu", table="vm_defaults") == 2
    assert find_line("file_sync = [{host = 1}, {host = 2}]\n", "host", table="file_sync", number=2) == 1


@given(st.text(), st.text(max_size=5), st.sampled_from(["", "file_sync"]), st.integers(0, 3))
def test_any_text_gives_a_line_of_it_or_none(text: str, key: str, table: str, number: int) -> None:
    assert 0 <= find_line(text, key, table=table, number=number) <= text.count("\n") + 1


@pytest.mark.parametrize("line", ["[" + " " * 500_000, "a" + " . a" * 100_000, "a." * 250_000, '"' * 500_000])
def test_long_lines_take_no_time(line: str) -> None:
    start = time.process_time()
    find_line(line, "x")
    assert time.process_time() - start < 2
