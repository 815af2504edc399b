"""The agent's fuzz targets: compiled, run for a while, and what came of it.

Made with clang's libFuzzer under address and undefined-behaviour sanitizers from agent/fuzz and agent/src,
into agent/build. Each run has a folder of its own; what it may write to besides is a tmpfs in a mount
namespace of its own (agent/fuzz/fuzz.c), so that a reader which escapes harms nothing and is seen.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import seeds

ROOT = Path(__file__).resolve().parents[2]
HARNESSES = ROOT / "agent" / "fuzz"
SOURCES = ROOT / "agent" / "src"
BUILD = ROOT / "agent" / "build"
SANITIZE = "address,undefined"
FLAGS = (
    *("-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-fno-omit-frame-pointer"),
    *(f"-fsanitize=fuzzer-no-link,{SANITIZE}", "-fno-sanitize-recover=all"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"),
)
MOST_BYTES = 65536
ONE_INPUT_S = 10
"""A reader that takes longer for one input is a finding, too."""


@dataclass(frozen=True)
class Run:
    """One target's run. edges: of the program, covered; found: the input that broke it, if there is one."""

    target: str
    inputs: int
    edges: int
    features: int
    found: bytes | None
    output: str


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


def run(target: str, folder: Path, *, seconds: int, more: Sequence[str] = ()) -> Run:
    """Fuzz a target for so long, beginning with the seeds and folder/corpus, where what is new is kept."""
    for name in ("corpus", "seeds"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds.of(target)):
        (folder / "seeds" / f"{number:03}").write_bytes(seed)
    for old in folder.glob("found-*"):
        old.unlink()
    # the names are relative: all else may not be there for the fuzzer any more
    words = [
        *(f"-max_total_time={seconds}", f"-timeout={ONE_INPUT_S}", f"-max_len={MOST_BYTES}"),
        *("-print_final_stats=1", "-rss_limit_mb=1024", "-artifact_prefix=found-"),
        *more,
        *("corpus", "seeds"),
    ]
    output = _start(target, folder, words, timeout_s=seconds * 2 + 120)
    artifacts = sorted(folder.glob("found-*"))
    return Run(
        target,
        inputs=_last(r"stat::number_of_executed_units:\s*(\d+)", output),
        edges=_last(r"\bcov: (\d+)", output),
        features=_last(r"\bft: (\d+)", output),
        found=artifacts[0].read_bytes() if artifacts else None,
        output=output,
    )


def replay(target: str, data: bytes, folder: Path) -> str:
    """What is wrong with this one input; "" when nothing is."""
    single = folder / "input"
    single.write_bytes(data)
    output = _start(target, folder, [single.name], timeout_s=60)
    return "" if re.search(r"^Executed .* in \d+ ms", output, re.MULTILINE) else output


def _start(target: str, folder: Path, words: Iterable[str], *, timeout_s: float) -> str:
    done = subprocess.run(
        [str(program()), *words],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "BANGER_FUZZ": target,
            "ASAN_OPTIONS": "detect_stack_use_after_return=1:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
        check=False,
    )
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode and not list(folder.glob("found-*")) and not (folder / "input").exists():
        raise RuntimeError(f"the fuzzer could not run: {output[-2000:]}")
    return output


def _last(pattern: str, text: str) -> int:
    numbers = re.findall(pattern, text)
    return int(numbers[-1]) if numbers else 0
