"""Kernel modules: finding them in a tree, their order, and which of them a guest needs to start.

Reads a tree `MODULES/kernel/**.ko[.xz|.zst|.gz]` beside `modules.builtin`. Dependencies come from each
module's own .modinfo, because Debian's package has no modules.dep (its install script runs depmod).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from banger.image import compress, elf
from banger.image.errors import invalid

MAX_MODULE = 64 << 20
MAX_MODULES = 20_000
GUEST_MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "overlay",
    "button",
)
"""What a guest needs before its root is mounted and its agent serves; with what these depend on."""

_SUFFIXES = {".ko": "none", ".ko.gz": "gzip", ".ko.xz": "xz", ".ko.zst": "zstd"}


@dataclass(frozen=True, slots=True)
class Module:
    """name: as the kernel says it (with `_`); content: the unpacked ELF object."""

    name: str
    content: bytes


def module_name(file_name: str) -> str:
    """The module in a file name, "" where it is none."""
    for suffix in _SUFFIXES:
        if file_name.endswith(suffix):
            return file_name.removesuffix(suffix).replace("-", "_")
    return ""


def index_tree(tree: Path) -> dict[str, Path]:
    """Module name → file. Blocking."""
    found: dict[str, Path] = {}
    for folder, _, files in os.walk(tree):
        for file in files:
            name = module_name(file)
            if name:
                found.setdefault(name, Path(folder, file))
        if len(found) > MAX_MODULES:
            raise invalid(f"more than {MAX_MODULES} kernel modules in {tree}")
    return found


def read_builtin(tree: Path) -> frozenset[str]:
    """The names of what is compiled into the kernel. Blocking; none where the list is missing."""
    try:
        text = (tree / "modules.builtin").read_text("utf-8", "replace")
    except FileNotFoundError:
        return frozenset()
    return frozenset(module_name(line.rpartition("/")[2].strip()) for line in text.splitlines()) - {""}


def read_module(file: Path) -> bytes:
    """A module's ELF, unpacked. Blocking."""
    kind = next((kind for suffix, kind in reversed(_SUFFIXES.items()) if file.name.endswith(suffix)), "none")
    data = file.read_bytes()
    if kind == "none":
        return data
    return b"".join(compress.decompressed([data], kind, limit=MAX_MODULE, what=f"the module {file.name}"))


def load_order(tree: Path, wanted: tuple[str, ...] = GUEST_MODULES) -> list[Module]:
    """The wanted modules and all they depend on, each after what it needs. Blocking.

    A module that is neither in the tree nor built in is IMAGE_INVALID; so is a circle.
    """
    files = index_tree(tree)
    builtin = read_builtin(tree)
    done: dict[str, Module] = {}
    under_way: set[str] = set()

    def visit(name: str, needed_by: str) -> None:
        if name in done or name in builtin:
            return
        if name in under_way:
            raise invalid(f"the kernel modules {name} and {needed_by} need each other")
        file = files.get(name)
        if file is None:
            raise invalid(
                f"the kernel has no module {name}" + (f", which {needed_by} needs" if needed_by else ""),
                hint="a guest needs virtio over MMIO, vsock and overlayfs, built in or as modules",
            )
        under_way.add(name)
        content = read_module(file)
        for value in elf.module_info(content).get("depends", []):
            for dependency in value.split(","):
                if dependency:
                    visit(dependency.replace("-", "_"), name)
        under_way.discard(name)
        done[name] = Module(name, content)

    for name in wanted:
        visit(name.replace("-", "_"), "")
    return list(done.values())
