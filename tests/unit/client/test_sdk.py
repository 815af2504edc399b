"""The SDK's synchronous door on a daemon process with fake services, whose guests are real agents."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from banger.client import process
from banger.client.guest import CommandNotStarted
from banger.client.sdk import Client
from banger.client.values import CommandFailed, CommandTimeout, OutputTooLong, Progress
from banger.client.vm import VM
from banger.errors import BangerError, ErrorCode
from tests.unit.agent.conftest import agent_program as agent_program
from tests.unit.cli.conftest import Instance, eventually
from tests.unit.cli.conftest import banger as banger

SRC = str(Path(__file__).parents[3] / "src")


@pytest.fixture(scope="module")
def client(banger: Instance) -> Iterator[Client]:
    banger("daemon", "start")
    with Client(home=banger.home, autostart=False) as client:
        yield client


@pytest.fixture(scope="module")
def vm(client: Client) -> Iterator[VM]:
    """One that the module's tests share."""
    with client.run(name="shared", env={"SHARED": "yes"}) as vm:
        yield vm


def left_in(mark: Path) -> str:
    """Shell: the pid, in a file that is there only once it is whole."""
    return f"echo $$ >{mark}.new; mv {mark}.new {mark}"


def names(client: Client) -> set[str]:
    return {vm.name for vm in client.list()}


# its life


def test_a_run_is_deleted_at_the_end_of_its_block(client: Client) -> None:
    said: list[Progress] = []
    with client.run(name="brief", vcpu=1, memory="256M", disk_size=1024, progress=said.append) as vm:
        assert vm.state == "running"
        assert vm.info["spec"]["memory_mib"] == 256
        assert (vm.name, vm.dns_name) == ("brief", "brief.vm")
        assert vm.ip
        assert "brief" in names(client)
        assert client.get("brief").id == vm.id
    assert "brief" not in names(client)
    assert said
    assert all(one.kind in ("step", "progress", "warning") for one in said)
    vm.delete()  # again is no error
    with pytest.raises(BangerError) as caught:
        vm.refresh()
    assert caught.value.code is ErrorCode.NOT_FOUND


def test_what_is_created_stays_and_can_be_stopped_and_started(client: Client) -> None:
    with client.create(name="kept", start=False) as vm:
        assert vm.state == "created"
    try:
        assert client.get("kept").start().state == "running"
        assert vm.refresh().state == "running"
        assert vm.stop().state == "stopped"
        assert vm.set(memory="512M").name == "kept"
        with pytest.raises(BangerError) as caught:
            vm.exec(["true"])
        assert caught.value.code is ErrorCode.WRONG_STATE
        assert vm.health()["healthy"] is False
    finally:
        vm.delete()
    assert "kept" not in names(client)


def test_a_failing_block_keeps_its_own_error(client: Client) -> None:
    with pytest.raises(ZeroDivisionError), client.run(name="failing"):
        raise ZeroDivisionError
    assert "failing" not in names(client)


def test_faults_are_said_before_anything_is_made(client: Client) -> None:
    before = names(client)
    faults: tuple[Callable[[], VM], ...] = (
        lambda: client.run(name="No"),
        lambda: client.run(memory="1K"),
        lambda: client.run(disk_size=1),
        lambda: client.run(vcpu=0),
        lambda: client.run(publish=["x"]),
        lambda: client.get(""),
    )
    for wrong in faults:
        with pytest.raises(BangerError) as caught:
            wrong()
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
        assert caught.value.brief
    assert names(client) == before


def test_a_program_that_is_killed_leaves_nothing(client: Client, banger: Instance) -> None:
    program = f"""
import sys
sys.path.insert(0, {SRC!r})
from banger.client.sdk import Client
vm = Client(home={str(banger.home)!r}, autostart=False).run(name="orphan")
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(4)  # longer than the daemon's grace: the lease is what holds it
        assert "orphan" in names(client)
        child.kill()
    eventually(lambda: "orphan" not in names(client))


def test_a_client_that_is_closed_or_forgotten_lets_go(client: Client, banger: Instance) -> None:
    vm = Client(home=banger.home, autostart=False).run(name="forgotten")
    del vm
    gc.collect()
    with Client(home=banger.home, autostart=False) as other:
        other.run(name="closed")
    with pytest.raises(BangerError, match="closed"):
        other.list()
    eventually(lambda: not names(client) & {"forgotten", "closed"})


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_neither_deletes_nor_uses_it(client: Client) -> None:
    with client.run(name="forked") as vm:
        child = os.fork()
        if not child:
            status = 1
            try:
                with vm:
                    vm.exec(["true"])
            except BangerError as error:
                status = 0 if error.code is ErrorCode.WRONG_STATE else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert vm.refresh().state == "running"
        assert vm.exec(["true"]).returncode == 0


# commands


def test_exec_gives_status_and_both_streams(vm: VM) -> None:
    result = vm.exec(["sh", "-c", "echo out; echo err >&2"])
    assert result == (("sh", "-c", "echo out; echo err >&2"), 0, b"out\n", b"err\n")
    text = vm.exec(["printf", "%s", "äß€😀"], text=True)
    assert text.stdout == "äß€😀"
    assert vm.exec(["printf", "\\377"], text=True).stdout == "\N{REPLACEMENT CHARACTER}"


def test_exec_has_environment_folder_and_empty_stdin(vm: VM) -> None:
    script = 'echo "$SHARED $OWN $PWD"; cat'
    result = vm.exec(["sh", "-c", script], env={"OWN": "ünï"}, cwd="/usr", text=True)
    assert result.stdout == "yes ünï /usr\n"
    assert vm.exec(["sh", "-c", "echo $SHARED"], env={"SHARED": "no"}).stdout == b"no\n"


def test_failure_is_an_error_unless_asked_otherwise(vm: VM) -> None:
    with pytest.raises(CommandFailed) as caught:
        vm.exec(["sh", "-c", "echo half; echo why >&2; exit 3"], text=True)
    failed = caught.value
    assert (failed.returncode, failed.stdout, failed.stderr) == (3, "half\n", "why\n")
    assert failed.code is ErrorCode.GUEST_ERROR
    assert "exit status 3" in str(failed)
    assert failed.details == "why"
    assert vm.exec(["sh", "-c", "exit 3"], check=False).returncode == 3
    assert vm.exec(["sh", "-c", "kill -9 $$"], check=False).returncode == -9
    with pytest.raises(CommandNotStarted) as missing:
        vm.exec(["no-such-program"], check=False)
    assert missing.value.status == 127


def test_a_string_is_no_command(vm: VM) -> None:
    with pytest.raises(TypeError, match="list of words"):
        vm.exec("ls -l")
    with pytest.raises(BangerError) as caught:
        vm.exec(["a\0b"])
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_megabytes_go_both_ways_at_once(vm: VM) -> None:
    data = os.urandom(1 << 20) * 8
    result = vm.exec(["cat"], input=data)
    assert result.stdout == data
    # a command that never reads its input
    assert vm.exec(["sh", "-c", "exec <&-; echo done"], input=data).stdout == b"done\n"
    # output on both streams before any input is read
    script = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; wc -c"
    result = vm.exec(["sh", "-c", script], input=data)
    assert (len(result.stdout), len(result.stderr)) == (3_000_000 + len(f"{len(data)}\n"), 3_000_000)


def test_a_timeout_kills_the_command_in_the_guest(
    vm: VM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    script = f"trap '' TERM HUP INT; echo before; {left_in(mark)}; sleep 600 & wait; sleep 600"
    from_now = process._deadline

    def from_the_mark(timeout: float | None) -> float | None:
        eventually(mark.exists)
        return from_now(timeout)

    monkeypatch.setattr(process, "_deadline", from_the_mark)
    with pytest.raises(CommandTimeout) as caught:
        vm.exec(["sh", "-c", script], timeout=1, text=True)
    assert caught.value.stdout == "before\n"
    assert caught.value.code is ErrorCode.TIMEOUT
    pid = int(mark.read_text())
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_output_is_bounded(vm: VM) -> None:
    with pytest.raises(OutputTooLong):
        vm.exec(["cat", "/dev/zero"], max_output_bytes=1 << 20)
    assert vm.exec(["head", "-c", "1000", "/dev/zero"], max_output_bytes=1000).returncode == 0


def test_an_interrupted_exec_ends_the_command(vm: VM, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def interrupted(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    def interrupt() -> None:
        eventually(mark.exists)
        signal.pthread_kill(us, signal.SIGUSR1)

    us = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, interrupted)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            vm.exec(["sh", "-c", f"{left_in(mark)}; exec sleep 600"])
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    pid = int(mark.read_text())
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_many_threads_may_share_a_client_and_a_vm(vm: VM) -> None:
    results: list[bytes] = []

    def work(number: int) -> None:
        results.extend(vm.exec(["echo", str(number)]).stdout for _ in range(3))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(f"{n}\n".encode() for n in range(12) for _ in range(3))


# files


def test_files_go_in_and_out(vm: VM, tmp_path: Path) -> None:
    guest = tmp_path / "guest"
    guest.mkdir()
    data = os.urandom(700_000)
    vm.write_file(f"{guest}/data", data, mode=0o600)
    assert (guest / "data").read_bytes() == data
    assert (guest / "data").stat().st_mode & 0o777 == 0o600
    assert vm.read_file(f"{guest}/data") == data
    vm.write_file(f"{guest}/data", "ü")
    assert vm.read_file(f"{guest}/data") == "ü".encode()
    vm.write_file(f"{guest}/empty", b"")
    assert vm.read_file(f"{guest}/empty") == b""


def test_what_is_no_file_is_not_read(vm: VM, tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(bytes(2000))
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    (tmp_path / "link").symlink_to("long")
    assert vm.read_file(f"{tmp_path}/link") == bytes(2000)
    for path, code in (
        (tmp_path, ErrorCode.INVALID_ARGUMENT),
        (tmp_path / "missing", ErrorCode.NOT_FOUND),
        (tmp_path / "sparse", ErrorCode.INVALID_ARGUMENT),
        ("/dev/null", ErrorCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(BangerError) as caught:
            vm.read_file(str(path))
        assert caught.value.code is code, path
    with pytest.raises(BangerError, match="longer than 1999"):
        vm.read_file(f"{tmp_path}/long", max_bytes=1999)
    with pytest.raises(BangerError):
        vm.write_file(f"{tmp_path}/no/folder", b"x")
    with pytest.raises(BangerError):
        vm.write_file(str(tmp_path), b"x")


def test_folders_are_copied_both_ways(vm: VM, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "ä b").write_text("1")
    seen: list[int] = []
    assert vm.copy_in(source, f"{tmp_path}/inside", on_bytes=seen.append).entries == 2
    assert seen
    assert vm.copy_out(f"{tmp_path}/inside", tmp_path / "back").entries == 2
    assert (tmp_path / "back" / "ä b").read_text() == "1"


# the rest


def test_images_and_kernels_are_listed(client: Client) -> None:
    assert all(image["name"] for image in client.list_images())
    assert client.image_catalog()
    client.kernel_catalog()
    client.list_kernels()
    with pytest.raises(BangerError) as caught:
        client.get_image("no-such")
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert client.info()["version"]


def test_a_daemon_that_is_not_there_is_said(tmp_path: Path) -> None:
    with Client(home=tmp_path, autostart=False) as client, pytest.raises(BangerError) as caught:
        client.list()
    assert caught.value.code is ErrorCode.DAEMON_UNREACHABLE
    assert caught.value.hint
