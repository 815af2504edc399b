"""The SDK's asynchronous door on a daemon process with fake services, whose guests are real agents."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from banger.client.aio import AsyncClient
from banger.client.aiovm import AsyncVM
from banger.client.guest import CommandNotStarted
from banger.client.sdk import Client
from banger.client.values import CommandFailed, CommandTimeout, OutputTooLong, Progress
from banger.errors import BangerError, ErrorCode
from tests.unit.agent.conftest import agent_program as agent_program
from tests.unit.cli.conftest import Instance, eventually
from tests.unit.cli.conftest import banger as banger

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def home(banger: Instance) -> Path:
    banger("daemon", "start")
    return banger.home


@pytest.fixture(scope="module")
def shared(home: Path) -> Iterator[Client]:
    """Its VM `shared` is there for every test."""
    with Client(home=home, autostart=False) as client, client.run(name="shared"):
        yield client


def calls() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "banger-call"]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    """As eventually(), with the loop free meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


async def too_late_once(mark: Path, call: Awaitable[object]) -> None:
    """The call, whose time is up when the file is there."""
    async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:

        async def watch() -> None:
            await until(mark.exists)
            limit.reschedule(asyncio.get_running_loop().time())

        group.create_task(watch())
        await call


async def get(client: AsyncClient) -> AsyncVM:
    return await client.get("shared")


# its life


async def test_a_run_is_deleted_at_the_end_of_its_block(shared: Client, home: Path) -> None:
    said: list[Progress] = []
    loop = threading.current_thread()
    in_loop: list[bool] = []

    def tell(progress: Progress) -> None:
        said.append(progress)
        in_loop.append(threading.current_thread() is loop)

    async with AsyncClient(home=home) as client:
        async with client.run(name="brief", env={"A": "b"}, progress=tell) as vm:
            assert (vm.state, vm.name, vm.dns_name) == ("running", "brief", "brief.vm")
            assert "brief" in {one.name for one in await client.list()}
            assert (await vm.exec(["sh", "-c", "echo $A"], text=True)).stdout == "b\n"
            assert (await (await vm.stop()).refresh()).state == "stopped"
        assert "brief" not in {one.name for one in await client.list()}
        assert said
        assert all(in_loop)
        kept = await client.create(name="kept", start=False)
        assert (await client.get("kept")).id == kept.id
        await kept.delete()
        with pytest.raises(BangerError) as caught:
            await kept.refresh()
        assert caught.value.code is ErrorCode.NOT_FOUND
        assert await client.image_catalog()
    eventually(lambda: not calls())


async def test_a_cancelled_boot_leaves_nothing(banger: Instance, tmp_path: Path, agent_program: Path) -> None:
    slow = Instance(tmp_path / "home", agent_program, BANGER_TEST_BOOT_S="600")
    slow("daemon", "start")
    try:
        async with AsyncClient(home=slow.home, autostart=False) as client:
            booting = asyncio.ensure_future(client.create(name="never").__aenter__())
            with Client(home=slow.home, autostart=False) as other:
                await until(lambda: "never" in {vm.name for vm in other.list()})
            booting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await booting
            assert await client.list() == []
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.run(name="late")
            assert await client.list() == []
        eventually(lambda: not calls())
    finally:
        slow.end()


async def test_twenty_five_vms_at_once(shared: Client, home: Path) -> None:
    before = open_files()
    async with AsyncClient(home=home, autostart=False) as client:

        async def one(number: int) -> int:
            async with client.run(name=f"many-{number}") as vm:
                first, second = await asyncio.gather(
                    vm.exec(["sh", "-c", f"sleep 0.5; echo {number}"]), vm.exec(["cat"], input=b"x" * 100_000)
                )
                assert len(second.stdout) == 100_000
                return int(first.stdout)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(25)]
        assert [task.result() for task in tasks] == list(range(25))
    eventually(lambda: not calls())
    assert open_files() == before


# commands


async def test_exec_as_the_other_door_has_it(shared: Client, home: Path) -> None:
    async with AsyncClient(home=home) as client:
        vm = await get(client)
        data = os.urandom(1 << 20) * 8
        assert (await vm.exec(["cat"], input=data)).stdout == data
        assert (await vm.exec(["sh", "-c", "exec <&-; echo done"], input=data)).stdout == b"done\n"
        assert (await vm.exec(["sh", "-c", "kill -9 $$"], check=False)).returncode == -9
        with pytest.raises(CommandFailed) as failed:
            await vm.exec(["sh", "-c", "echo why >&2; exit 3"], text=True)
        assert (failed.value.returncode, failed.value.stderr) == (3, "why\n")
        with pytest.raises(CommandNotStarted):
            await vm.exec(["no-such-program"])
        with pytest.raises(OutputTooLong):
            await vm.exec(["cat", "/dev/zero"], max_output_bytes=1 << 20)
        with pytest.raises(CommandTimeout) as late:
            await vm.exec(["sh", "-c", "echo before; sleep 600"], timeout=3, text=True)
        assert late.value.stdout == "before\n"
        with pytest.raises(TypeError):
            await vm.exec("ls -l")


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_cancelled_exec_ends_the_command(
    shared: Client, home: Path, tmp_path: Path, how: str
) -> None:
    mark = tmp_path / "mark"
    script = f"trap '' TERM HUP INT; echo $$ >{mark}.new; mv {mark}.new {mark}; sleep 600"
    async with AsyncClient(home=home) as client:
        vm = await get(client)
        before = open_files()
        if how == "cancel":
            running = asyncio.ensure_future(vm.exec(["sh", "-c", script]))
            await until(mark.exists)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        else:
            with pytest.raises(TimeoutError):
                await too_late_once(mark, vm.exec(["sh", "-c", script]))
        assert mark.exists()
        pid = int(mark.read_text())
        eventually(lambda: gone(pid))
        assert open_files() == before
        assert (await vm.exec(["echo", "still"])).stdout == b"still\n"
    eventually(lambda: not calls())


async def test_output_comes_as_it_is_written(shared: Client, home: Path) -> None:
    script = "echo one; read answer; echo got $answer >&2; read answer; echo $answer; exit 4"
    async with AsyncClient(home=home) as client:
        vm = await get(client)
        async with vm.popen(["sh", "-c", script], stdin=True) as process:
            assert await process.read() == ("stdout", b"one\n")
            assert process.pid > 0
            await process.write("two\n")
            assert await process.read() == ("stderr", b"got two\n")
            await process.write(b"three\n")
            assert [piece async for piece in process] == [("stdout", b"three\n")]
            assert process.returncode == 4
            assert await process.wait() == 4
        async with vm.popen(["sh", "-c", "printf 'a\\r\\nb'; printf 'c\\n\\377'"]) as process:
            assert [line async for line in process.lines()] == ["a", "bc", "\N{REPLACEMENT CHARACTER}"]
        async with vm.popen(["sh", "-c", "stty size; read x; stty size"], stdin=True, terminal=True) as tty:
            lines = tty.lines()
            assert await anext(lines) == "24 80"
            await tty.resize(40, 100)
            await tty.write("\n")
            assert [line async for line in lines if line] == ["40 100"]
        process = await vm.popen(["sleep", "600"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await process.wait()
        await process.signal("TERM")
        assert await process.wait() == -15
        await process.close()


async def test_leaving_the_block_kills_the_command(shared: Client, home: Path) -> None:
    async with AsyncClient(home=home) as client:
        vm = await get(client)
        async with vm.popen(
            ["sh", "-c", "trap '' HUP TERM; echo $$; sleep 600 & wait; sleep 600"]
        ) as process:
            pid = int(await anext(process.lines()))
            assert not gone(pid)
        eventually(lambda: gone(pid))


async def test_one_task_writes_while_another_reads(shared: Client, home: Path) -> None:
    data = os.urandom(1 << 20) * 40
    async with AsyncClient(home=home) as client:
        vm = await get(client)
        async with vm.popen(["cat"], stdin=True) as process:

            async def feed() -> None:
                await process.write(data)
                await process.close_stdin()

            async with asyncio.TaskGroup() as group:
                group.create_task(feed())
                received = b"".join([piece.data async for piece in process])
        assert received == data
        async with vm.popen(["cat"], stdin=True) as process:
            with pytest.raises(BangerError) as caught:
                await process.write(bytes(40 << 20))
        assert caught.value.code is ErrorCode.BUSY


async def test_a_slow_reader_holds_the_command_up(shared: Client, home: Path) -> None:
    async with AsyncClient(home=home) as client:
        vm = await get(client)
        async with vm.popen(["cat", "/dev/zero"]) as process:
            assert await process.read()
            await asyncio.sleep(0.3)
            assert process._dialogue.held < 4 << 20
            for _ in range(100):
                assert await process.read()


# the rest


async def test_files_and_copies(shared: Client, home: Path, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    async with AsyncClient(home=home) as client:
        vm = await get(client)
        await vm.write_file(f"{tmp_path}/file", data)
        assert await vm.read_file(f"{tmp_path}/file") == data
        assert (await vm.copy_in(tmp_path / "file", f"{tmp_path}/other")).entries == 1
        assert (await vm.copy_out(f"{tmp_path}/other", tmp_path / "back")).entries == 1
    assert (tmp_path / "back").read_bytes() == data


async def test_a_cancelled_copy_ends_at_once(shared: Client, home: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    stuck, told = threading.Event(), threading.Event()

    def hold(_count: int) -> None:
        stuck.set()
        told.wait(60)

    async with AsyncClient(home=home) as client:
        vm = await get(client)
        copying = asyncio.ensure_future(vm.copy_in(source, f"{tmp_path}/copy", on_bytes=hold))
        await until(stuck.is_set)
        copying.cancel()
        await asyncio.wait([copying], timeout=0.1)  # it has heard of it before its bytes go on
        told.set()
        with pytest.raises(asyncio.CancelledError):
            await copying
    eventually(lambda: not calls())
    eventually(lambda: not (tmp_path / "copy").exists())


async def test_a_port_of_the_guest_is_reached(shared: Client, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with AsyncClient(home=home) as client:
            reader, writer = await (await get(client)).connect(server.getsockname()[1])
            accepted, _ = await asyncio.to_thread(server.accept)
            with accepted:
                writer.write(b"hello")
                assert await asyncio.to_thread(accepted.recv, 100) == b"hello"
                accepted.sendall(b"world")
                assert await reader.read(100) == b"world"
            writer.close()
            await writer.wait_closed()


async def test_sessions(shared: Client, home: Path) -> None:
    script = "while read line; do echo got $line; done; echo bye; exit 3"
    async with AsyncClient(home=home) as client:
        vm = await get(client)
        session = await vm.session(["sh", "-c", script], name="talk", stdin=True)
        async with session.attach(write=True) as stream:
            assert stream.has_stdin
            await stream.write("one\n")
            assert await stream.read() == ("stdout", b"got one\n")
        await session.send("two\n")
        async with session.attach() as stream:
            assert await stream.read() == ("stdout", b"got two\n")
            with pytest.raises(BangerError, match="not ours"):
                await stream.write("x")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await session.wait()
        async with session.follow() as log:
            await session.send(b"three", end=True)
            assert [line async for line in log.lines()] == ["got one", "got two", "bye"]
        assert await session.wait() == 3
        assert await session.logs(tail=1) == b"bye\n"
        assert [one.name for one in await vm.sessions()] == ["talk"]
        assert (await vm.get_session("talk")).id == session.id
        await session.remove()
        other = await vm.session(["sleep", "600"])
        assert (await other.stop(timeout=60)).returncode == -15
        await other.remove()
    eventually(lambda: not calls())


async def test_a_log_that_is_followed_can_be_left(shared: Client, home: Path) -> None:
    log = next((home / "state" / "vms").glob("*")) / "console.log"
    async with AsyncClient(home=home) as client:
        vm = await get(client)
        Path(vm.info["runtime"].get("log_path") or log).write_bytes(b"booting\n")
        async for piece in (pieces := vm.logs(follow=True)):
            assert b"booting" in piece
            break
        await pieces.aclose()  # type: ignore[attr-defined]
        assert b"".join([piece async for piece in vm.logs()]) == b"booting\n"
    eventually(lambda: not calls())
