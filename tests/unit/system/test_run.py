"""The gate for host programs: environment, limits, deadlines, nothing left running."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from banger.errors import ErrorCode
from banger.system.errors import CommandError, CommandTimeout, MissingProgram
from banger.system.run import run, run_to_fd, stream_lines
from tests.fakes.looptime import pass_time

pytestmark = pytest.mark.anyio


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def wait_for_file(path: Path) -> str:
    async with asyncio.timeout(50):
        while not (path.exists() and path.read_text().strip()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return path.read_text().strip()


async def wait_dead(pid: int) -> None:
    async with asyncio.timeout(50):
        while True:
            try:
                stat = Path(f"/proc/{pid}/stat").read_text()
            except FileNotFoundError:
                return
            if stat.rpartition(")")[2].split()[0] == "Z":
                return
            await asyncio.sleep(0.005)


async def test_status_and_both_outputs() -> None:
    before = open_descriptors()
    done = await run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=10, check=False)
    assert (done.status, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert open_descriptors() == before


async def test_failure_names_program_status_and_last_line() -> None:
    with pytest.raises(CommandError) as caught:
        await run(["sh", "-c", "echo one >&2; echo two >&2; exit 7"], timeout_s=10)
    assert caught.value.code is ErrorCode.COMMAND_FAILED
    assert caught.value.brief == "sh exited with 7: two"
    assert caught.value.status == 7
    assert caught.value.stderr == "one\ntwo"


async def test_death_by_signal_is_said() -> None:
    with pytest.raises(CommandError, match="died of signal 9"):
        await run(["sh", "-c", "kill -9 $$"], timeout_s=10)


async def test_missing_program_is_named_with_hint() -> None:
    with pytest.raises(MissingProgram) as caught:
        await run(["banger-no-such-program"], timeout_s=10)
    assert caught.value.code is ErrorCode.HOST_UNSUITABLE
    assert "banger-no-such-program" in caught.value.brief
    assert caught.value.hint


async def test_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    done = await run(["env"], timeout_s=10, env={"GIVEN": "yes"})
    names = {line.partition(b"=")[0] for line in done.stdout.splitlines()}
    assert names == {b"PATH", b"LANG", b"GIVEN"}


async def test_stdin_is_closed_unless_given() -> None:
    assert (await run(["cat"], timeout_s=10)).stdout == b""
    big = os.urandom(300_000)
    assert (await run(["cat"], timeout_s=10, input=big)).stdout == big


async def test_program_that_wants_no_stdin_is_fine() -> None:
    done = await run(["true"], timeout_s=10, input=b"x" * 1_000_000)
    assert done.status == 0


async def test_output_is_capped() -> None:
    done = await run(["sh", "-c", "seq 1 100000; seq 1 100000 >&2"], timeout_s=20, output_limit=1000)
    assert done.truncated
    assert len(done.stdout) == len(done.stderr) == 1000
    assert done.stdout.startswith(b"1\n2\n")
    assert done.stderr.endswith(b"\n100000\n")


async def test_timeout_kills_the_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    before = open_descriptors()
    task = asyncio.ensure_future(run(["sh", "-c", f"sleep 600 & echo $! > {pid_file}; wait"], timeout_s=300))
    pid = int(await wait_for_file(pid_file))
    pass_time(300)
    with pytest.raises(CommandTimeout) as caught:
        await task
    assert caught.value.code is ErrorCode.TIMEOUT
    await wait_dead(pid)
    assert open_descriptors() == before


async def test_timeout_holds_also_when_only_a_straggler_keeps_the_pipe() -> None:
    with pytest.raises(CommandTimeout):
        await run(["sh", "-c", "sleep 60 &"], timeout_s=0.3)


async def test_cancel_kills_the_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    before = open_descriptors()
    task = asyncio.ensure_future(run(["sh", "-c", f"sleep 600 & echo $! > {pid_file}; wait"], timeout_s=300))
    pid = int(await wait_for_file(pid_file))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_dead(pid)
    assert open_descriptors() == before


async def test_debug_line_can_be_pasted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "banger.run"):
        await run(["echo", "a b", "$x"], timeout_s=10, cwd="/")
    assert caplog.messages == ["$ (cd / && echo 'a b' '$x')"]


async def test_run_to_fd_takes_a_stream_and_a_descriptor(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for i in range(3):
            yield b"%d\n" % i

    with (tmp_path / "out").open("wb") as out:
        await run_to_fd(["cat"], out.fileno(), timeout_s=10, stdin=chunks())
    with (tmp_path / "out").open("rb") as source, (tmp_path / "copy").open("wb") as out:
        await run_to_fd(["cat"], out.fileno(), timeout_s=10, stdin=source.fileno())
    assert (tmp_path / "copy").read_bytes() == b"0\n1\n2\n"


async def test_a_failing_source_ends_the_program() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        await run_to_fd(["sleep", "60"], 2, timeout_s=30, stdin=broken())


async def test_stream_lines_tells_lines_and_progress_bars() -> None:
    lines: list[str] = []
    await stream_lines(["printf", "10%%\\r20%%\\rdone\\nlast"], lines.append, timeout_s=10)
    assert lines == ["10%", "20%", "done", "last"]


async def test_a_listener_that_fails_ends_the_program() -> None:
    def listen(_line: str) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await stream_lines(["sh", "-c", "echo hi; exit 0"], listen, timeout_s=10)
