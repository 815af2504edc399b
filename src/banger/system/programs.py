"""Where a host program is. The list of what the host should have is host_packages.py."""

from __future__ import annotations

import shutil

from banger.system.host_packages import search_path


def find(program: str) -> str | None:
    """The absolute path of a program (a bare name, or a path), or None. sbin folders are searched too."""
    return shutil.which(program, path=search_path())
