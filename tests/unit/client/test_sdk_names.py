"""The SDK's public names: cheap to import, documented, the same behind both doors, typed strictly."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import banger
from tests.guest.pythonpage import programs

PROJECT = Path(__file__).parents[3]
HERE = Path(sys.executable).parent
ONLY_THERE = {
    "Client": {"daemon"},
    "VM": {"daemon", "ends_with_its_block"},
}
"""What the synchronous twin alone has: reached through `blocking`."""


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "src"), "NO_COLOR": "1", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def test_importing_banger_imports_none_of_it() -> None:
    code = "import sys; before = set(sys.modules); import banger; print(*set(sys.modules) - before)"
    done = run(sys.executable, "-S", "-c", code)
    assert set(done.stdout.split()) <= {"banger", "__future__"}, done.stderr


def test_every_name_is_there_and_only_those() -> None:
    assert sorted(banger.__all__) == sorted(banger._MODULES)
    for name in banger.__all__:
        assert getattr(banger, name) is not None
        assert name in dir(banger)
    with pytest.raises(AttributeError, match="NoSuch"):
        _ = banger.NoSuch  # type: ignore[attr-defined]
    source = inspect.getsource(banger)
    typed = source.partition("if TYPE_CHECKING:")[2].partition("__all__")[0]
    assert all(name in typed for name in banger.__all__)


def test_the_sdk_imports_nothing_from_outside() -> None:
    code = "import sys; from banger import AsyncClient, Client; print(*sys.modules)"
    done = run(sys.executable, "-S", "-c", code)
    assert done.returncode == 0, done.stderr


def test_the_reference_is_fresh() -> None:
    made = run(sys.executable, "tools/docs/python.py", HOME="/nonexistent")
    assert made.returncode == 0, made.stderr
    assert (PROJECT / "docs" / "python-api.md").read_text() == made.stdout, (
        "stale: python tools/docs/python.py > docs/python-api.md"
    )


def test_the_readme_has_the_pages_first_program() -> None:
    readme = (PROJECT / "README.md").read_text()
    assert f"```python\n{programs()[0].code}```" in readme


def public(kind: type) -> dict[str, object]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


@pytest.mark.parametrize("name", ["Client", "VM", "Session", "Stream", "Process", "SessionStream"])
def test_both_doors_have_the_same_names(name: str) -> None:
    here, there = public(getattr(banger, name)), public(getattr(banger, f"Async{name}"))
    assert set(here) - ONLY_THERE.get(name, set()) == set(there) - {"blocking"}
    for attribute in set(here) & set(there):
        one, other = here[attribute], there[attribute]
        if not inspect.isfunction(one) or not inspect.isfunction(other):
            continue
        ours = list(inspect.signature(one).parameters)
        theirs = list(inspect.signature(other).parameters)
        # asyncio.timeout does what a timeout of theirs would
        kept = ours if "timeout" in theirs else [each for each in ours if each != "timeout"]
        assert theirs == kept, attribute


TYPES = """
from typing import assert_type
import asyncio
import socket
from banger import (AsyncClient, AsyncProcess, AsyncVM, BangerError, Client, CommandFailed, ErrorCode, Output,
                    Process, Progress, Result, Session, VM)

def told(progress: Progress) -> None:
    assert_type(progress.current, int | None)

with Client(progress=told) as client, client.run(image="x", memory="2G", publish=[80, "1:2"]) as vm:
    assert_type(vm, VM)
    assert_type(vm.exec(["a"]), Result[bytes])
    assert_type(vm.exec(["a"], text=True), Result[str])
    assert_type(vm.exec(["a"], text=True).stdout, str)
    with vm.popen(["a"]) as process:
        assert_type(process, Process)
        for piece in process:
            assert_type(piece, Output)
        assert_type(process.wait(), int)
    assert_type(vm.session(["a"]), Session)
    assert_type(vm.connect(1), socket.socket)
    assert_type(client.list(), list[VM])
    assert_type(client.list_images()[0]["name"], str)

async def main() -> None:
    async with AsyncClient() as client, client.run() as vm:
        assert_type(vm, AsyncVM)
        assert_type(await client.create(), AsyncVM)
        assert_type((await vm.exec(["a"], text=True)).stdout, str)
        async with vm.popen(["a"]) as process:
            assert_type(process, AsyncProcess)
            async for piece in process:
                assert_type(piece, Output)

try:
    asyncio.run(main())
except CommandFailed as failed:
    assert_type(failed.returncode, int)
except BangerError as error:
    assert_type(error.code, ErrorCode)
"""


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's programs, and what a checker must infer, as files of a user's project."""
    folder = tmp_path_factory.mktemp("typed")
    for program in programs():
        name = "".join(letter if letter.isalnum() else "_" for letter in program.heading)
        (folder / f"page_{name}.py").write_text(program.code)
    (folder / "inferred.py").write_text(TYPES)
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict", "pythonVersion": "3.11"}')
    return folder


@pytest.mark.slow
@pytest.mark.limit(900)
def test_the_programs_satisfy_mypy(typed: Path) -> None:
    files = [str(path) for path in sorted(typed.glob("*.py"))]
    done = run(
        str(HERE / "mypy"), "--strict", "--config-file=", "--python-version=3.11", *files, MYPYPATH="src"
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.limit(900)
def test_every_public_type_is_written_down() -> None:
    """As pyright checks a library's: nothing is left to what a checker may infer."""
    path = f"{HERE}:{os.environ['PATH']}"
    argv = ["--pythonpath", sys.executable, "--verifytypes", "banger", "--ignoreexternal", "--outputjson"]
    done = run(str(HERE / "pyright"), *argv, PATH=path)
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    homes = {f"banger.{module}.{name}" for name, module in banger._MODULES.items()}
    ours = [
        symbol for symbol in symbols if symbol["name"] in homes or symbol["name"].rpartition(".")[0] in homes
    ]
    assert {symbol["name"] for symbol in ours} >= homes
    assert not [symbol for symbol in ours if symbol["isTypeAmbiguous"] or not symbol["isTypeKnown"]]


@pytest.mark.slow
@pytest.mark.limit(900)
def test_the_programs_satisfy_pyright(typed: Path) -> None:
    path = f"{HERE}:{os.environ['PATH']}"
    done = run(
        str(HERE / "pyright"),
        "--warnings",
        "--pythonpath",
        sys.executable,
        "--project",
        str(typed),
        PATH=path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
