"""The fuzzer of the image room's readers (image_targets.py), run as a program of its own (image_main.py)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.fuzz import image_seeds
from tests.fuzz.libfuzzer import ROOT, Fuzzer

MADE_TO_FAIL = {"broken", "escape"}
_SOURCE = Path(__file__).with_name("image_targets.py")


def targets() -> list[str]:
    """As image_targets.py defines them; that is not imported: its readers are, only in the fuzzer."""
    found = re.findall(r"^def fuzz_(\w+)\(", _SOURCE.read_text(), re.MULTILINE)
    return [name for name in found if name not in MADE_TO_FAIL]


FUZZER = Fuzzer(
    command=lambda: [sys.executable, "-m", "tests.fuzz.image_main"],
    targets=targets,
    seeds=image_seeds.of,
    dictionary=image_seeds.WORDS,
    env={"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PYTHONDONTWRITEBYTECODE": "1"},
    memory_mib=512,
)
