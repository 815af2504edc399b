"""The configuration of the repository in the guest: what makes git see the files there as it does here.

For local/gitscratch.py. Nothing that names a program, a credential or a path of the host's goes along. Pure.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from banger.local.gitsource import Source

_KEPT = (
    ("core.autocrlf", "autocrlf"),
    ("core.eol", "eol"),
    ("core.sparsecheckoutcone", "sparseCheckoutCone"),
)
_NETWORK = ("https", "http", "ssh", "git", "git+ssh", "ssh+git", "ftp", "ftps")
_SCP = re.compile(r"(?!-)(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9._-]+:[^\n]+\Z")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(?:([^/@]*)@)?(.*)\Z", re.DOTALL)


def guest_config(source: Source, *, worktree: str = "") -> str:
    """The text of .git/config. worktree: a submodule's, as its own folder of .git/modules sees it."""
    config = source.repository.config
    lines = ["[core]", "\trepositoryformatversion = 0", "\tfilemode = true", "\tbare = false"]
    lines.append("\tlogallrefupdates = true")
    for key, name in _KEPT:
        value = config.get(key)
        if value and value.isalnum():
            lines.append(f"\t{name} = {value}")
    if config.get("core.symlinks") and not config.flag("core.symlinks"):
        lines.append("\tsymlinks = false")
    if config.flag("core.sparsecheckout"):
        lines.append("\tsparseCheckout = true")
    if worktree:
        lines.append(f"\tworktree = {quote(worktree)}")
    url = clean_url(config.get("remote.origin.url"))
    if url:
        lines += [
            '[remote "origin"]',
            f"\turl = {quote(url)}",
            "\tfetch = +refs/heads/*:refs/remotes/origin/*",
        ]
    for submodule in source.submodules:
        if submodule.source is None:
            continue
        lines += [f"[submodule {quote(submodule.name)}]", "\tactive = true"]
        if submodule.url:
            lines.append(f"\turl = {quote(clean_url(submodule.url))}")
    return "\n".join(lines) + "\n"


def clean_url(url: str) -> str:
    """Without the secrets that people put before the @; "" for a path of the host's."""
    found = _SCHEME.match(url)
    if found is None:
        return url if _SCP.match(url) and "::" not in url else ""
    scheme, user, rest = found.groups()
    if scheme.lower() not in _NETWORK:
        return ""
    if scheme.lower() in ("ssh", "git+ssh", "ssh+git") and user:
        return f"{scheme}://{user.partition(':')[0]}@{rest}"
    return f"{scheme}://{rest}"


def quote(value: str) -> str:
    """A value or a subsection's name of a git configuration file."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def modules_folder(name: str) -> str:
    """Where a submodule's repository is, below .git."""
    return os.path.join("modules", name)
