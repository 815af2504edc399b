"""The written pages: each is in the index, and no link between files leads nowhere."""

from __future__ import annotations

import re

from tests.style import source

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
DOCS = source.PROJECT / "docs"


def test_the_index_names_every_page() -> None:
    named = set(LINK.findall((DOCS / "README.md").read_text()))
    missing = {page.name for page in DOCS.glob("*.md")} - named - {"README.md"}
    assert not missing, f"docs/README.md does not name {sorted(missing)}"


def test_no_link_between_files_leads_nowhere() -> None:
    pages = [*source.PROJECT.glob("*.md"), *DOCS.glob("*.md"), *(source.PROJECT / "bench").glob("*.md")]
    broken = [
        f"{page.relative_to(source.PROJECT)}: {link}"
        for page in pages
        for link in LINK.findall(page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert not broken, "\n".join(broken)
