"""Compiles the guest agent into the wheel: static musl programs for every guest architecture.

Used by hatchling as a build hook, and by hand as `python hatch_build.py [--force]` in a working tree.
The compiler is the pinned `ziglang`, so that a build needs nothing but PyPI. An agent is made anew when
the hash of its sources, flags and compiler version differs from the one it was made with; builds beside
each other are safe: each is written to a name of its own and renamed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "agent" / "src"
BUILD = ROOT / "agent" / "build"
TARGET = ROOT / "src" / "banger" / "agent_bin"
ARCHITECTURES = ("x86_64", "aarch64")
FLAGS = (
    "-std=c11",
    "-D_GNU_SOURCE",
    "-Os",
    "-static",
    "-s",
    "-ffunction-sections",
    "-fdata-sections",
    "-Wl,--gc-sections",
)
WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wshadow",
    "-Wconversion",
    "-Wformat=2",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Wundef",
    "-Wvla",
    "-Werror",
)


def compiler_version() -> str:
    from importlib.metadata import version

    return version("ziglang")


def fingerprint(architecture: str) -> str:
    digest = hashlib.sha256()
    for part in (architecture, compiler_version(), *FLAGS, *WARNINGS):
        digest.update(part.encode() + b"\0")
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def build_agent(architecture: str, *, force: bool = False) -> bool:
    """Make agent-<architecture>; False when it was up to date."""
    program = TARGET / f"agent-{architecture}"
    stamp = TARGET / f"agent-{architecture}.sha256"
    wanted = fingerprint(architecture)
    if not force and program.exists() and stamp.exists() and stamp.read_text() == wanted:
        return False
    BUILD.mkdir(parents=True, exist_ok=True)
    TARGET.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"agent-{architecture}-", dir=BUILD)
    os.close(handle)
    made = Path(name)
    try:
        subprocess.run(
            [
                *(sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl"),
                *FLAGS,
                *WARNINGS,
                *("-o", name),
                *map(str, sorted(SOURCES.glob("*.c"))),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=600,
            env={
                **os.environ,
                "ZIG_GLOBAL_CACHE_DIR": str(BUILD / "zig-global"),
                "ZIG_LOCAL_CACHE_DIR": str(BUILD / "zig-local"),
            },
        )
        made.chmod(0o755)
        stamp.unlink(missing_ok=True)
        made.replace(program)
        stamp.write_text(wanted)
    finally:
        made.unlink(missing_ok=True)
    return True


def build_all(*, force: bool = False) -> None:
    for architecture in ARCHITECTURES:
        made = build_agent(architecture, force=force)
        print(f"agent-{architecture}: {'built' if made else 'up to date'}", file=sys.stderr)


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # by hand, where hatchling is not installed
    pass
else:

    class AgentBuildHook(BuildHookInterface):  # type: ignore[type-arg]
        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Wheels, editable ones too, carry the agents; a source distribution carries their sources."""
            if self.target_name == "wheel":
                build_all()


if __name__ == "__main__":
    build_all(force="--force" in sys.argv[1:])
