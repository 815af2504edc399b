"""The agent's readers against any bytes, under sanitizers, for a second each (`make fuzz` for longer)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.capabilities import demand, require
from tests.fuzz import agent, seeds
from tests.fuzz.libfuzzer import PATIENT_S, Run

pytestmark = require("clang", "own-mounts")
SECONDS = 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Run]]]:
    """All targets, two at a time: each test waits for its own."""
    demand("clang", "own-mounts")
    agent.program()
    folder = tmp_path_factory.mktemp("fuzz")
    with ThreadPoolExecutor(2) as pool:
        yield {
            target: pool.submit(
                agent.FUZZER.run, target, folder / target, seconds=SECONDS, one_input_s=PATIENT_S
            )
            for target in agent.targets()
        }


@pytest.mark.parametrize("target", agent.targets())
def test_any_bytes(target: str, runs: dict[str, Future[Run]]) -> None:
    run = runs[target].result()  # the test's own limit, and the program's, are before any here
    assert run.found is None, f"{run.found!r}\n{run.output[-6000:]}"
    assert run.inputs >= len(seeds.of(target)), run.output
    assert run.edges > 20, run.output


@pytest.mark.parametrize("target", seeds.FOUND)
def test_what_was_once_found(target: str, tmp_path: Path) -> None:
    for data in seeds.FOUND[target]:
        assert agent.FUZZER.replay(target, data, tmp_path) == ""


def test_every_target_has_seeds() -> None:
    assert all(len(seeds.of(target)) > 1 for target in agent.targets())


def test_a_broken_promise_is_told(tmp_path: Path) -> None:
    """The target `broken` promises that no input begins with a NUL: the input that does is given back."""
    run = agent.FUZZER.run("broken", tmp_path, seconds=60)
    assert run.found is not None
    assert run.found.startswith(b"\0")
    assert "not so" in run.output
    assert "not so" in agent.FUZZER.replay("broken", run.found, tmp_path)
