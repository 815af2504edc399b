"""The image room's readers against any bytes, for a second each (`make fuzz` for longer).

What was once found is among the seeds (image_seeds.FOUND), all of which each run tries first.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.capabilities import demand, require
from tests.fuzz import image, image_seeds
from tests.fuzz.libfuzzer import PATIENT_S, Run

pytestmark = require("atheris")
SECONDS = 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Run]]]:
    """All targets, two at a time: each test waits for its own."""
    demand("atheris")
    folder = tmp_path_factory.mktemp("fuzz")
    with ThreadPoolExecutor(2) as pool:
        yield {
            target: pool.submit(
                image.FUZZER.run, target, folder / target, seconds=SECONDS, one_input_s=PATIENT_S
            )
            for target in image.targets()
        }


@pytest.mark.parametrize("target", image.targets())
def test_any_bytes(target: str, runs: dict[str, Future[Run]]) -> None:
    run = runs[target].result()  # the test's own limit, and the program's, are before any here
    assert run.found is None, f"{run.found!r}\n{run.output[-6000:]}"
    assert run.inputs >= len(image_seeds.of(target)), run.output
    assert run.edges > 20, run.output


def test_every_target_has_seeds() -> None:
    assert all(len(image_seeds.of(target)) > 1 for target in image.targets())


@pytest.mark.parametrize(("target", "says"), [("broken", "not so"), ("escape", "Escaped")])
def test_a_broken_promise_is_told(target: str, says: str, tmp_path: Path) -> None:
    """`broken` promises that no input begins with a NUL, `escape` writes outside where one does."""
    run = image.FUZZER.run(target, tmp_path / "run", seconds=60)
    assert run.found is not None
    assert run.found.startswith(b"\0")
    assert says in run.output
    assert says in image.FUZZER.replay(target, run.found, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
