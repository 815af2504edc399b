"""Commands through the agent: status, streams, users, folders, signals, terminals."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from banger.guest.agent import AgentClient
from banger.guest.errors import AgentRefused
from banger.guest.stream import ExecStream, Exited, Stderr, Stdout
from tests.unit.agent.conftest import TIMEOUT_S, Agent

pytestmark = pytest.mark.anyio


async def collect(stream: ExecStream) -> tuple[bytes, bytes, Exited]:
    out, err = b"", b""
    async for event in stream:
        if isinstance(event, Stdout):
            out += event.data
        elif isinstance(event, Stderr):
            err += event.data
        else:
            return out, err, event
    raise AssertionError("no exit")


async def run(
    agent: Agent,
    *argv: str,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    user: str = "",
    terminal: bool = False,
) -> tuple[bytes, bytes, Exited]:
    client = AgentClient(agent.vm_dir)
    stream = await client.exec(
        argv, env, cwd=cwd, user=user, stdin=stdin is not None, terminal=terminal, rows=33, cols=101
    )
    async with stream, asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        if stdin is not None:
            group.create_task(feed(stream, stdin))
        return await collect(stream)


async def feed(stream: ExecStream, data: bytes) -> None:
    await stream.send_stdin(data)
    await stream.close_stdin()


async def until(condition: Callable[[], bool | Awaitable[bool]], *, timeout_s: float = TIMEOUT_S) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("true", 0),
        ("false", 1),
        ("exit 42", 42),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
    ],
)
async def test_status(agent: Agent, command: str, status: int) -> None:
    out, err, exited = await run(agent, "sh", "-c", command)
    assert (out, err, exited.status) == (b"", b"", status)
    assert (exited.signal is not None) == (status > 128 and status != 255)


async def test_the_streams_are_apart(agent: Agent) -> None:
    out, err, exited = await run(agent, "sh", "-c", "echo one; echo two >&2; echo three")
    assert (out, err, exited.status) == (b"one\nthree\n", b"two\n", 0)


async def test_without_stdin_there_is_an_empty_one(agent: Agent) -> None:
    assert (await run(agent, "cat"))[0] == b""


async def test_stdin_arrives_and_ends(agent: Agent) -> None:
    assert (await run(agent, "cat", stdin=b"hi\0\xff\n"))[0] == b"hi\0\xff\n"
    assert (await run(agent, "wc", "-c", stdin=b""))[0] == b"0\n"


async def test_64_mib_there_and_back(agent: Agent) -> None:
    data = os.urandom(1 << 20) * 64
    client = AgentClient(agent.vm_dir)
    digest, length = hashlib.sha256(), 0
    stream = await client.exec(["cat"], stdin=True)
    async with stream, asyncio.timeout(200), asyncio.TaskGroup() as group:
        group.create_task(feed(stream, data))
        async for event in stream:
            if isinstance(event, Stdout):
                digest.update(event.data)
                length += len(event.data)
    assert length == len(data)
    assert digest.digest() == hashlib.sha256(data).digest()


async def test_a_slow_reader_loses_nothing(agent: Agent) -> None:
    client = AgentClient(agent.vm_dir)
    async with await client.exec(["sh", "-c", "head -c 3000000 /dev/zero; echo end >&2"]) as stream:
        await asyncio.sleep(1)  # far longer than the drain's patience
        out, err, exited = await collect(stream)
    assert (len(out), err, exited.status) == (3000000, b"end\n", 0)


async def test_a_command_that_reads_no_stdin_ends(agent: Agent) -> None:
    assert (await run(agent, "true", stdin=b"x" * 2_000_000))[2].status == 0


async def test_a_command_that_closes_stdin_gets_the_rest_dropped(agent: Agent) -> None:
    out, _, _ = await run(agent, "sh", "-c", "exec <&-; sleep 0.3; echo done", stdin=b"x" * 2_000_000)
    assert out == b"done\n"


async def test_signals_pass_a_stuck_stdin(agent: Agent) -> None:
    client = AgentClient(agent.vm_dir)
    async with await client.exec(["sleep", "60"], stdin=True) as stream:
        stuck = asyncio.create_task(stream.send_stdin(b"x" * 4_000_000))
        await asyncio.sleep(0.3)
        assert not stuck.done()
        await stream.signal(signal.SIGTERM)
        async with asyncio.timeout(50):  # its sleep would last longer
            assert (await collect(stream))[2] == Exited(None, signal.SIGTERM)
            await stuck


async def test_signals_reach_the_whole_group(agent: Agent) -> None:
    client = AgentClient(agent.vm_dir)
    async with await client.exec(["sh", "-c", "sleep 60 | sleep 60; echo no"]) as stream:
        await asyncio.sleep(0.2)
        await stream.signal(signal.SIGKILL)
        assert (await collect(stream))[2].signal == signal.SIGKILL


async def test_background_output_shortly_after_the_end_is_not_lost(agent: Agent) -> None:
    # the end is its background's own doing, in the midst of its work: no sleep says how long "shortly" is
    out, _, exited = await run(agent, "sh", "-c", "echo early; (kill -9 $$; echo late) & wait")
    assert (out, exited.signal) == (b"early\nlate\n", signal.SIGKILL)


async def test_a_pipe_held_open_does_not_hold_the_exit(agent: Agent) -> None:
    out, _, exited = await run(agent, "sh", "-c", "sleep 600 & echo $!; exit 3")
    assert exited.status == 3
    assert not is_gone(int(out))
    os.kill(int(out), signal.SIGKILL)


async def test_endless_output_of_a_background_process_does_not_hold_the_exit(agent: Agent) -> None:
    assert (await run(agent, "sh", "-c", "timeout 120 yes & exit 4"))[2].status == 4


@pytest.mark.parametrize(
    ("argv", "code", "status"),
    [
        (["no-such-command"], "not_found", 127),
        (["/no/such/command"], "not_found", 127),
        (["/etc/passwd"], "not_executable", 126),
        (["/"], "not_executable", 126),
        ([""], "not_found", 127),
    ],
)
async def test_commands_that_cannot_run(agent: Agent, argv: list[str], code: str, status: int) -> None:
    with pytest.raises(AgentRefused) as caught:
        await AgentClient(agent.vm_dir).exec(argv)
    assert (caught.value.agent_code, caught.value.exit_status) == (code, status)
    assert caught.value.errno > 0


async def test_a_script_without_interpreter_is_not_executable(agent: Agent, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo no\n")
    script.chmod(0o755)
    with pytest.raises(AgentRefused) as caught:
        await AgentClient(agent.vm_dir).exec([str(script)])
    assert caught.value.agent_code == "not_executable"


async def test_no_such_user_group_or_folder(agent: Agent) -> None:
    client = AgentClient(agent.vm_dir)
    for user in ("no-such-user", "root:no-such-group", ":", "99999999999", "-1"):
        with pytest.raises(AgentRefused) as caught:
            await client.exec(["true"], user=user)
        assert caught.value.agent_code == "no_user", user
    with pytest.raises(AgentRefused) as caught:
        await client.exec(["true"], cwd="/no/such/folder")
    assert caught.value.agent_code == "no_cwd"


async def test_environment(agent: Agent) -> None:
    out, _, _ = await run(agent, "env", env={"A": "1=2", "HOME": "/elsewhere"}, user="root")
    lines = dict(line.split("=", 1) for line in out.decode().splitlines())
    assert lines == {
        "A": "1=2",
        "HOME": "/elsewhere",
        "LOGNAME": "root",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SHELL": lines["SHELL"],
        "USER": "root",
    }
    assert b"TERM=xterm\r\n" in (await run(agent, "env", terminal=True))[0]


async def test_path_of_the_request_is_searched(agent: Agent, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    assert (await run(agent, "tool", env={"PATH": f"/nowhere:{tmp_path}"}))[0] == b"found\n"


async def test_folder(agent: Agent, tmp_path: Path) -> None:
    assert (await run(agent, "pwd", cwd=str(tmp_path)))[0].decode() == f"{tmp_path}\n"


@pytest.mark.parametrize(
    ("user", "wanted"),
    [
        ("", "uid=0(root) gid=0(root) groups=0(root)"),
        ("daemon", "uid=1(daemon) gid=1(daemon) groups=1(daemon)"),
        ("1", "uid=1(daemon) gid=1(daemon) groups=1(daemon)"),
        ("1:tty", "uid=1(daemon) gid=5(tty) groups=5(tty)"),
        ("daemon:5", "uid=1(daemon) gid=5(tty) groups=5(tty)"),
        ("54321", "uid=54321 gid=0(root) groups=0(root)"),
    ],
)
async def test_users(agent: Agent, user: str, wanted: str) -> None:
    if os.geteuid():
        pytest.skip("needs root: changes user")
    assert (await run(agent, "id", user=user))[0].decode().strip() == wanted


async def test_a_terminal(agent: Agent) -> None:
    out, err, exited = await run(agent, "sh", "-c", "tty; stty size; echo error >&2", terminal=True)
    first, *rest = out.decode().split("\r\n")
    assert first.startswith("/dev/pts/")
    assert rest == ["33 101", "error", ""]
    assert (err, exited.status) == (b"", 0)


async def said(stream: ExecStream, wanted: bytes) -> None:
    """The next output is `wanted`, in however many pieces the terminal or pipe gives it."""
    got = b""
    while len(got) < len(wanted):
        event = await anext(stream)
        assert isinstance(event, Stdout)
        got += event.data
    assert got == wanted


async def test_resize(agent: Agent) -> None:
    client = AgentClient(agent.vm_dir)
    command = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.02; done"
    async with await client.exec(["sh", "-c", command], terminal=True, stdin=True) as stream:
        await said(stream, b"ready\r\n")
        await stream.resize(50, 132)
        assert (await collect(stream))[0] == b"50 132\r\n"


async def test_end_of_file_and_keys_at_a_terminal(agent: Agent) -> None:
    out, _, exited = await run(agent, "cat", stdin=b"hello\n", terminal=True)
    assert (out, exited.status) == (b"hello\r\nhello\r\n", 0)
    client = AgentClient(agent.vm_dir)
    async with await client.exec(["sleep", "60"], stdin=True, terminal=True) as stream:
        await stream.send_stdin(b"\x03")
        assert (await collect(stream))[2].signal == signal.SIGINT


async def test_job_control_works(agent: Agent) -> None:
    out, _, _ = await run(agent, "sh", "-c", "ps -o tpgid=,pgid= -p $$", terminal=True)
    foreground, group = out.split()
    assert foreground == group


async def test_a_host_that_goes_is_a_hangup(agent: Agent) -> None:
    client = AgentClient(agent.vm_dir)
    stream = await client.exec(["sleep", "60"])
    pid = stream.pid
    assert not is_gone(pid)
    await stream.aclose()
    await until(lambda: is_gone(pid))


async def test_a_command_that_ignores_the_hangup_is_killed(agent: Agent) -> None:
    client = AgentClient(agent.vm_dir)
    stream = await client.exec(["sh", "-c", "trap '' HUP; echo ready; sleep 60"])
    pid = stream.pid
    await said(stream, b"ready\n")
    hung_up = time.monotonic()
    await stream.aclose()
    await until(lambda: is_gone(pid))
    assert time.monotonic() - hung_up > 1, "it had no time to end by itself"


async def test_long_commands_and_environments(agent: Agent) -> None:
    argv = ["sh", "-c", "echo $# ${#LONG}", "sh", *("x" * 100 for _ in range(4000))]
    out, _, _ = await run(agent, *argv, env={"LONG": "y" * 100_000})
    assert out == b"4000 100000\n"


async def test_signals_are_at_their_defaults(agent: Agent) -> None:
    out, _, _ = await run(agent, "grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status")
    # 32 and 33 are the C library's own, which no program can set; make 4.3 leaves them ignored
    libc_own = 1 << 31 | 1 << 32
    assert [int(line.split()[1], 16) & ~libc_own for line in out.splitlines()] == [0, 0]


async def test_what_the_agents_starter_ignored_is_at_its_default_too(
    agent_program: Path, tmp_path: Path
) -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGUSR1, signal.SIGINT)}
    try:
        running = Agent(agent_program, tmp_path)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    try:
        out, _, _ = await run(running, "sh", "-c", "kill -INT $$; echo ignored")
        assert out == b""
        out, _, _ = await run(running, "sh", "-c", "kill -USR1 $$; echo ignored")
        assert out == b""
    finally:
        running.stop()


async def test_no_descriptor_leaks_into_commands(agent: Agent) -> None:
    out, _, _ = await run(agent, "ls", "/proc/self/fd", stdin=b"")
    assert out.split() == [b"0", b"1", b"2", b"3"]  # 3 is ls's own


async def test_200_at_once(agent: Agent) -> None:
    async def one(number: int) -> None:
        out, _, _ = await run(agent, "echo", str(number))
        assert out == f"{number}\n".encode()

    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(one(number))
    with suppress(TimeoutError):
        await until(lambda: len(agent.children()) <= 1)
    assert len(agent.children()) <= 1
