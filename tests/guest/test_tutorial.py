"""What README.md and docs/tutorial.md show is what a person sees who types their commands, in a fresh home.

BANGER_TEST_RECORD=1 writes what was seen into the pages instead.
"""

from __future__ import annotations

import os

import pytest

from tests.docpages import PROJECT
from tests.guest.instance import Instance
from tests.guest.typist import console, play, typist

pytestmark = pytest.mark.guest

RECORD = os.environ.get("BANGER_TEST_RECORD", "") == "1"


PAGES = (
    "README.md",
    "docs/tutorial.md",
    *sorted(f"docs/{page.name}" for page in (PROJECT / "docs").glob("howto-*.md")),
)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_what_a_person_sees(banger: Instance, name: str) -> None:
    page = PROJECT / name
    assert console(page), "there is nothing to type on this page"
    with typist(banger) as person:
        differ = play(person, page, record=RECORD)
    assert RECORD or not differ, "\n".join(differ)
    assert not banger.vms(), "the page leaves VMs behind"
