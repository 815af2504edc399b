"""The agent's fuzz targets, compiled.

Made with clang's libFuzzer under address and undefined-behaviour sanitizers from agent/fuzz and agent/src,
into agent/build. What a run may write to besides its own folder is a tmpfs in a mount namespace of its own
(agent/fuzz/fuzz.c), so that a reader which escapes harms nothing and is seen.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz import seeds
from tests.fuzz.libfuzzer import ROOT, Fuzzer

HARNESSES = ROOT / "agent" / "fuzz"
SOURCES = ROOT / "agent" / "src"
BUILD = ROOT / "agent" / "build"
SANITIZE = "address,undefined"
FLAGS = (
    *("-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-fno-omit-frame-pointer"),
    *(f"-fsanitize=fuzzer-no-link,{SANITIZE}", "-fno-sanitize-recover=all"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"),
)


def targets() -> list[str]:
    """As agent/fuzz/fuzz.h declares them."""
    return re.findall(r"^void fuzz_(\w+)\(const uint8_t", (HARNESSES / "fuzz.h").read_text(), re.MULTILINE)


@functools.cache
def program() -> Path:
    """The fuzzer, made anew when a source has changed. Several at once make one."""
    digest = hashlib.sha256(repr(FLAGS).encode())
    for source in sorted((*HARNESSES.iterdir(), *SOURCES.iterdir())):
        digest.update(source.name.encode() + source.read_bytes())
    BUILD.mkdir(parents=True, exist_ok=True)
    made = BUILD / f"agent-fuzz-{digest.hexdigest()[:16]}"
    with (BUILD / ".lock-fuzz").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            for old in BUILD.glob("agent-fuzz-*"):
                old.unlink()
            with tempfile.TemporaryDirectory(dir=BUILD) as folder:
                _compile(Path(folder), made)
    return made


def _compile(folder: Path, made: Path) -> None:
    harnesses = sorted(HARNESSES.glob("*.c"))
    # a harness that looks inside a source includes it; main is libFuzzer's
    inside = {"main.c"}.union(*(re.findall(r'"\.\./src/(\w+\.c)"', path.read_text()) for path in harnesses))
    sources = [*harnesses, *(path for path in sorted(SOURCES.glob("*.c")) if path.name not in inside)]
    objects = {source: folder / f"{number}.o" for number, source in enumerate(sources)}

    def one(source: Path) -> None:
        subprocess.run(
            ["clang", *FLAGS, "-c", "-o", str(objects[source]), str(source)], check=True, timeout=300
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, sources))
    whole = folder / "fuzz"
    words = ["clang", f"-fsanitize=fuzzer,{SANITIZE}", "-o", str(whole), *map(str, objects.values())]
    subprocess.run(words, check=True, timeout=300)
    whole.rename(made)


FUZZER = Fuzzer(
    command=lambda: [str(program())],
    targets=targets,
    seeds=seeds.of,
    env={
        "ASAN_OPTIONS": "detect_stack_use_after_return=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
)
