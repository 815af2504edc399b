"""The SDK's commands and sessions as streams, with real agents for guests."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.client.sdk import Client
from banger.client.vm import VM
from banger.errors import BangerError, ErrorCode
from tests.unit.agent.conftest import agent_program as agent_program
from tests.unit.cli.conftest import Instance, eventually
from tests.unit.cli.conftest import banger as banger


@pytest.fixture(scope="module")
def vm(banger: Instance) -> Iterator[VM]:
    banger("daemon", "start")
    with Client(home=banger.home, autostart=False) as client, client.run(name="shared") as vm:
        yield vm


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# commands


def test_output_comes_as_it_is_written(vm: VM) -> None:
    script = "echo one; read answer; echo got $answer >&2; read answer; echo $answer; exit 4"
    with vm.popen(["sh", "-c", script], stdin=True) as process:
        assert process.read() == ("stdout", b"one\n")
        assert process.pid > 0
        assert process.returncode is None
        process.write("two\n")
        assert process.read() == ("stderr", b"got two\n")
        process.write(b"three\n")
        assert list(process) == [("stdout", b"three\n")]
        assert process.returncode == 4
        assert process.wait() == 4
        assert process.read() is None


def test_lines_of_one_stream_or_of_both(vm: VM) -> None:
    script = "printf 'a\\r\\nb'; printf 'c\\n\\377' ; sleep 0.2; echo err >&2; sleep 0.2; printf end"
    with vm.popen(["sh", "-c", script]) as process:
        assert list(process.lines()) == ["a", "bc", "\N{REPLACEMENT CHARACTER}end"]
    with vm.popen(["sh", "-c", script]) as process:
        assert list(process.lines("stderr")) == ["err"]
    with vm.popen(["sh", "-c", script]) as process:
        assert sorted(process.lines(None)) == ["a", "bc", "err", "\N{REPLACEMENT CHARACTER}end"]


def test_a_line_without_end_comes_in_pieces(vm: VM) -> None:
    with vm.popen(["sh", "-c", "head -c 2500000 /dev/zero | tr '\\0' x; echo; echo short"]) as process:
        lines = list(process.lines())
    assert len("".join(lines)) == 2_500_005
    assert lines[-1] == "short"
    assert max(map(len, lines)) < 2_000_000


def test_a_slow_reader_holds_the_command_up(vm: VM) -> None:
    """Nothing is taken from the guest that is not taken here: a command that writes for ever is bounded."""
    with vm.popen(["cat", "/dev/zero"]) as process:
        for _ in range(10):
            assert process.read()
        time.sleep(0.3)
        assert process._dialogue.held < 4 << 20
    assert process.returncode is None
    with pytest.raises(BangerError) as caught:
        process.write(b"x")
    assert caught.value.code is ErrorCode.WRONG_STATE


def test_one_thread_writes_while_another_reads(vm: VM) -> None:
    data = os.urandom(1 << 20) * 40  # more than may lie unread
    with vm.popen(["cat"], stdin=True) as process:

        def feed() -> None:
            process.write(data)
            process.close_stdin()

        writer = threading.Thread(target=feed)
        writer.start()
        received = b"".join(piece.data for piece in process)
        writer.join()
    assert received == data


def test_writing_without_reading_is_no_deadlock(vm: VM) -> None:
    with vm.popen(["cat"], stdin=True) as process, pytest.raises(BangerError) as caught:
        process.write(bytes(40 << 20))
    assert caught.value.code is ErrorCode.BUSY


def test_signals_reach_the_command(vm: VM) -> None:
    script = "trap 'echo int; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    with vm.popen(["sh", "-c", script]) as process:
        assert next(process.lines()) == "ready"
        with pytest.raises(BangerError) as caught:
            process.wait(timeout=0.2)
        assert caught.value.code is ErrorCode.TIMEOUT
        process.signal("INT")
        assert process.wait(timeout=60) == 7
        process.signal("INT")  # it has ended: nothing happens
    with vm.popen(["sleep", "600"]) as process:
        process.kill()
        assert process.wait() == -9
    with pytest.raises(BangerError):
        process.signal("NOSUCH")


def test_leaving_the_block_kills_the_command(vm: VM) -> None:
    with vm.popen(["sh", "-c", "trap '' HUP TERM; echo $$; sleep 600 & wait; sleep 600"]) as process:
        pid = int(next(process.lines()))
        assert Path(f"/proc/{pid}").exists()
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    process.close()  # again


def test_a_terminal_has_a_size_that_changes(vm: VM) -> None:
    with vm.popen(
        ["sh", "-c", "stty size; read x; stty size; echo $TERM; test -t 2"],
        stdin=True,
        terminal=True,
        size=(30, 90),
    ) as process:
        lines = process.lines()
        assert next(lines) == "30 90"
        process.resize(40, 100)
        process.write("\n")
        assert [line for line in lines if line] == ["40 100", "xterm-256color"]
    assert process.returncode == 0


def test_nothing_is_left_open(vm: VM) -> None:
    vm.exec(["true"])
    before = open_files()
    for _ in range(5):
        vm.exec(["echo"])
        with vm.popen(["sleep", "600"]):
            pass
        with vm.popen(["echo"]) as process:
            process.wait()
        with pytest.raises(BangerError):
            vm.exec(["no-such-program"])
    assert open_files() == before


def test_stdin_that_was_not_asked_for_takes_nothing(vm: VM) -> None:
    with vm.popen(["cat"]) as process:
        with pytest.raises(BangerError, match="takes no input"):
            process.write(b"x")
        assert process.wait() == 0


# a connection to a port


def test_a_port_of_the_guest_is_reached(vm: VM) -> None:
    script = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
    connection.sendall(connection.recv(100).upper())
"""
    with vm.popen(["python3", "-c", script]) as process:
        port = int(next(process.lines()))
        with vm.connect(port) as connection:
            connection.sendall(b"hello")
            assert connection.recv(100) == b"HELLO"
        assert process.wait() == 0
        with pytest.raises(BangerError) as caught:
            vm.connect(port)
        assert caught.value.code is ErrorCode.GUEST_ERROR
    late = f"import time; time.sleep(0.5)\n{script}".replace('("127.0.0.1", 0)', f'("127.0.0.1", {port})')
    with vm.popen(["python3", "-c", late]), vm.connect(port, timeout=60) as connection:
        connection.sendall(b"late")
        assert connection.recv(100) == b"LATE"


# sessions


def test_a_session_runs_and_its_logs_are_kept(vm: VM) -> None:
    session = vm.session(["sh", "-c", "echo out; echo err >&2; exit 5"], name="brief", tags={"kind": "test"})
    assert session.wait(timeout=60) == 5
    assert session.status == "exited"
    assert sorted(session.logs().split()) == [b"err", b"out"]
    assert vm.get_session("brief").id == session.id
    assert session.info.get("tags") == {"kind": "test"}
    assert [one.name for one in vm.sessions()] == ["brief"]
    assert session.wait() == 5
    with session.attach() as stream:  # waiting has shown it to nobody
        assert sorted(stream.lines(None)) == ["err", "out"]
        assert stream.returncode == 5
    session.remove()
    assert vm.sessions() == []


def test_a_session_is_attached_left_and_attached_again(vm: VM) -> None:
    script = "while read line; do echo got $line; done; echo bye"
    session = vm.session(["sh", "-c", script], name="talk", stdin=True)
    with session.attach(write=True) as stream:
        assert stream.has_stdin
        stream.write("one\n")
        assert stream.read() == ("stdout", b"got one\n")
    session.send("two\n")
    eventually(lambda: session.logs() == b"got one\ngot two\n")
    assert session.logs(tail=1) == b"got two\n"
    with session.attach() as stream:
        assert not stream.has_stdin
        assert stream.read() == ("stdout", b"got two\n")
        with pytest.raises(BangerError, match="not ours"):
            stream.write("x")
    with pytest.raises(BangerError) as caught:
        session.wait(timeout=0.3)
    assert caught.value.code is ErrorCode.TIMEOUT
    with session.follow() as stream:
        session.send(b"three", end=True)
        assert list(stream.lines()) == ["got one", "got two", "bye"]
    assert session.wait() == 0
    session.remove()


def test_sessions_are_signalled_stopped_and_removed(vm: VM) -> None:
    session = vm.session(["sleep", "600"], name="sleeper")
    assert session.returncode is None
    with pytest.raises(BangerError) as caught:
        session.remove()
    assert caught.value.code is ErrorCode.IN_USE
    assert session.stop(timeout=60).returncode == -15
    session.remove()
    other = vm.session(["sleep", "600"])
    other.signal("KILL")
    assert other.wait() == -9
    other.remove(force=True)
    failed = vm.session(["no-such-program"], name="failed")
    assert failed.status == "failed"
    with pytest.raises(BangerError, match="did not run"):
        failed.wait()
    failed.remove()
