"""Whether a repository's tools are installed in its guest, and what is configured for that (SPEC §3, §7).

For the CLI, before a VM is made. Reads the configuration and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from banger.config.toml import load_settings
from banger.errors import BangerError, ErrorCode

FILES = (".mise.toml", "mise.toml", ".tool-versions")
"""At the top of a repository: what it is built with."""
ARCHITECTURES = {"x86_64": "x64", "aarch64": "arm64"}
"""As mise calls them in the names of its files."""


@dataclass(frozen=True, slots=True)
class Tooling:
    """files: of FILES, those that travel. url, sha256: of mise, "" where not configured."""

    files: tuple[str, ...]
    url: str
    sha256: str
    config_file: str

    @property
    def names(self) -> str:
        return ", ".join(self.files)


def tool_files(brought: Iterable[str]) -> tuple[str, ...]:
    """Of the files that travel, named relative to the top, those that name tools."""
    return tuple(sorted(set(FILES).intersection(brought)))


def find_tooling(
    brought: Iterable[str], config_file: str, *, nat: bool | None, machine: str = ""
) -> Tooling | None:
    """What is to be installed, None for nothing. nat: what was asked for, None for the configured default.

    WRONG_STATE where the guest would have no way out to the tools. INVALID_CONFIG.
    """
    files = tool_files(brought)
    if not files:
        return None
    settings = load_settings(config_file)
    if not (bool(settings.vm_defaults.nat) if nat is None else nat):
        raise no_way_out(files, hint="--nat gives it one, --no-bootstrap goes without the tools")
    architecture = machine or os.uname().machine
    url = settings.tooling.mise_url.replace("{arch}", ARCHITECTURES.get(architecture, architecture))
    return Tooling(files, url, settings.tooling.mise_sha256, config_file)


def no_way_out(files: Iterable[str], *, hint: str) -> BangerError:
    brief = f"the repository's tools ({', '.join(files)}) are fetched by the guest, which would have no NAT"
    return BangerError(ErrorCode.WRONG_STATE, brief, hint=hint)


def in_background(*, shell: bool, terminal: bool) -> bool:
    """A person at a shell goes on meanwhile; whatever runs by itself needs the tools to be there."""
    return shell and terminal
