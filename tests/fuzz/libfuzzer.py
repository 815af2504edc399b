"""A program made with libFuzzer: run on a target for a while, and what came of it.

The agent's (agent.py, C under sanitizers) and the image readers' (image.py, Python under atheris) both take
libFuzzer's options and the target's name in BANGER_FUZZ. Each run has a folder of its own: `seeds`, `corpus`
for what reached something new, `found-*` for an input that broke a promise.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 65536
ONE_INPUT_S = 10
"""A reader that takes longer for one input is a finding, too."""
PATIENT_S = 120
"""What both have on a host that stands still for seconds: an input of the tests, and a program to start."""
MEMORY_MIB = 1024


@dataclass(frozen=True)
class Run:
    """One target's run. edges: of the program, covered; found: the input that broke it, if there is one."""

    target: str
    inputs: int
    edges: int
    features: int
    found: bytes | None
    output: str


@dataclass(frozen=True)
class Fuzzer:
    """command: the program; targets: their names; seeds: what a target begins with.

    dictionary: words that an input may have in it. env: for the program. memory_mib: more is a finding.
    """

    command: Callable[[], list[str]]
    targets: Callable[[], list[str]]
    seeds: Callable[[str], list[bytes]]
    dictionary: Sequence[bytes] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    memory_mib: int = MEMORY_MIB

    def run(self, target: str, folder: Path, *, seconds: int, one_input_s: int = ONE_INPUT_S) -> Run:
        """Fuzz a target for so long, beginning with the seeds and folder/corpus, where what is new stays. All
        seeds are tried, however long that takes."""
        for name in ("corpus", "seeds"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(self.seeds(target)):
            (folder / "seeds" / f"{number:03}").write_bytes(seed)
        for old in folder.glob("found-*"):
            old.unlink()
        words = [f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}"]
        words += [f"-timeout={one_input_s}", f"-report_slow_units={one_input_s}"]
        words += ["-print_final_stats=1", f"-rss_limit_mb={self.memory_mib}", "-artifact_prefix=found-"]
        if os.environ.get("CI"):  # as hypothesis does: no other inputs than the last time
            words.append("-seed=1")
        if self.dictionary:
            lines = ('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in self.dictionary)
            (folder / "dictionary").write_text("".join(lines))
            words.append("-dict=dictionary")
        # the names are relative: all else may not be there for the fuzzer any more
        output = self._start(
            target, folder, [*words, "corpus", "seeds"], timeout_s=seconds * 2 + 2 * PATIENT_S
        )
        artifacts = sorted(folder.glob("found-*"))
        return Run(
            target,
            inputs=_last(r"stat::number_of_executed_units:\s*(\d+)", output),
            edges=_last(r"\bcov: (\d+)", output),
            features=_last(r"\bft: (\d+)", output),
            found=artifacts[0].read_bytes() if artifacts else None,
            output=output,
        )

    def replay(self, target: str, data: bytes, folder: Path) -> str:
        """What is wrong with this one input; "" when nothing is."""
        single = folder / "input"
        single.write_bytes(data)
        output = self._start(target, folder, [single.name], timeout_s=2 * PATIENT_S)
        return "" if re.search(r"^Executed .* in \d+ ms", output, re.MULTILINE) else output

    def _start(self, target: str, folder: Path, words: Iterable[str], *, timeout_s: float) -> str:
        # A process that is executed begins with the peak memory of whose memory it shared until then: that of
        # the whole test run, which libFuzzer would take for the target's. `timeout` is small, and forks.
        done = subprocess.run(
            ["timeout", "--kill-after=5", str(timeout_s), *self.command(), *words],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "BANGER_FUZZ": target, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s + 30,
            check=False,
        )
        output = done.stdout.decode("utf-8", "replace")
        if done.returncode and not list(folder.glob("found-*")) and not (folder / "input").exists():
            raise RuntimeError(f"the fuzzer could not run: {output[-2000:]}")
        return output


def _last(pattern: str, text: str) -> int:
    numbers = re.findall(pattern, text)
    return int(numbers[-1]) if numbers else 0
