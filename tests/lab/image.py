"""What the lab host is made of: a Debian tree from the product's own recipe code, and a disk for each run.

The tree (`lab_image`) is an image like any other, in a BANGER_HOME of its own beside the artifacts
(`.artifacts/lab-<key>`, by packages and kernel), made once. The disk (`make_disk`) is /root of the
lab host: the project, the Python packages it runs on, and the artifacts as a home for its guests.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from banger.image import catalog
from banger.model.records import Image
from banger.system.host_packages import search_path
from tests.artifacts import REPOSITORY, Artifacts, artifacts, services

NAME = "lab-host"
PACKAGES = (
    "python3",
    "iproute2",
    "iputils-ping",
    "nftables",
    "dmsetup",
    "e2fsprogs",
    "kmod",
    "openssh-client",
    "procps",
)
PYTHON = (3, 11)
"""Of the lab host's Debian: what comes along must be for it."""
NEEDED = ("banger", "pytest", "anyio", "hypothesis", "pyyaml", "jsonschema")
"""Distributions whose closure travels; banger itself does as its source."""
NOT_NEEDED = {"banger", "ziglang"}
DISK_BYTES = 6 << 30
BUILD_TIMEOUT_S = 3600.0
_SOURCES = ("src", "tests", "agent", "pyproject.toml")


def lab_image(base: Artifacts) -> Image:
    """The lab host's image; built when there is none for these packages and this kernel. Blocking."""
    recipe = f"{PACKAGES} {base.kernel.kernel_version} {base.kernel.sha256}"
    home = base.home / f"lab-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with open(base.home / ".lock-lab", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _lab_image(base, home)


def _lab_image(base: Artifacts, home: Path) -> Image:
    if not home.exists():
        for old in (*base.home.glob("lab-*"), *base.home.glob(".lab-*.tmp")):
            shutil.rmtree(old)  # of another kernel or recipe, or half made
        seeded = base.home / f".{home.name}.tmp"
        base.seed_home(seeded)
        os.rename(seeded, home)
    entry = catalog.DebianImage(
        name=NAME, suite="bookworm", kernel=base.image.name, packages=PACKAGES, description="the lab host"
    )
    _kernels, images, _tools = services(home)
    catalog.IMAGES[NAME] = entry
    try:
        return asyncio.run(asyncio.wait_for(images.resolve(NAME), BUILD_TIMEOUT_S))
    finally:
        del catalog.IMAGES[NAME]


def make_disk(path: Path, base: Artifacts, *, extra: dict[str, Path]) -> None:
    """An ext4 at `path`: project/, site/ (Python packages), home/ (a BANGER_HOME), and the extra files.

    extra: name on the disk → file here. The tree below `path`'s folder is made of hard links where it can be.
    """
    tree = path.with_suffix(".tree")
    try:
        (tree / "project").mkdir(parents=True)
        for name in _SOURCES:
            source = REPOSITORY / name
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "build", ".hypothesis")
                shutil.copytree(source, tree / "project" / name, ignore=ignore)
            else:
                shutil.copy2(source, tree / "project" / name)
        base.seed_home(tree / "home")
        copy_packages(tree / "site")
        compile_python(tree)
        for name, source in extra.items():
            shutil.copy2(source, tree / name)
        mke2fs = shutil.which("mke2fs", path=search_path()) or "mke2fs"
        argv = [mke2fs, "-q", "-F", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0,lazy_itable_init=1"]
        argv += ["-d", str(tree), str(path), f"{DISK_BYTES >> 10}k"]
        subprocess.run(argv, check=True, timeout=300, capture_output=True)
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def copy_packages(target: Path) -> None:
    """The closure of NEEDED, as installed here; fetched for the lab's Python where ours is another one."""
    target.mkdir()
    found = sorted(_closure(NEEDED))
    if sys.version_info[:2] == PYTHON:
        for name in found:
            _copy_distribution(name, target)
        return
    version = f"{PYTHON[0]}.{PYTHON[1]}"
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in found]
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    argv += ["--python-version", version, "--implementation", "cp", "--target", str(target), *pins]
    if "backports.zstd" not in {name.lower() for name in found}:
        argv.append("backports.zstd")  # needed below Python 3.14
    subprocess.run(argv, check=True, timeout=600, capture_output=True)


def compile_python(tree: Path) -> None:
    """Byte code for the lab's Python, where ours is the same: in there compiling takes half a minute."""
    if sys.version_info[:2] == PYTHON:
        argv = [sys.executable, "-m", "compileall", "-q", "-j", "0", "-s", str(tree), "-p", "/root"]
        folders = [str(tree / "site"), str(tree / "project" / "src"), str(tree / "project" / "tests")]
        # what is not for this Python is not compiled, and not used either
        subprocess.run([*argv, *folders], check=False, timeout=300, capture_output=True)


def _closure(names: tuple[str, ...]) -> set[str]:
    """Distributions that these need, themselves included, as far as they are installed here."""
    seen: set[str] = set()
    todo = [*names]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another Python or another system
        seen.add(name)
        for line in requires:
            wanted = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
            if wanted is not None and "extra ==" not in line:
                todo.append(wanted[0])
    return seen - NOT_NEEDED


def _copy_distribution(name: str, target: Path) -> None:
    distribution = importlib.metadata.distribution(name)
    for file in distribution.files or []:
        if ".." in file.parts or file.suffix == ".pyc":
            continue
        source = Path(str(distribution.locate_file(file)))
        if source.is_file():
            place = target / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place)


if __name__ == "__main__":
    print(lab_image(artifacts()).artifact_dir)
