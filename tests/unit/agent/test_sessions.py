"""Sessions: commands that outlive their connection, the server and every reader."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from banger.guest import sessionwire, wire
from banger.guest.wire import Fields
from tests.unit.agent.conftest import Agent
from tests.unit.agent.sessions import Connection, Refused, Sessions, is_gone, wait_gone

ID = "0123456789abcdef" * 2


@pytest.fixture
def sessions(agent: Agent) -> Iterator[Sessions]:
    made = Sessions(agent)
    try:
        yield made
    finally:
        if agent.process.poll() is None:
            made.remove_all()


def test_a_session_runs_ends_and_is_kept(sessions: Sessions) -> None:
    before = int(time.time())
    started = sessions.start(
        *("sh", "-c", "echo out; echo err >&2; echo $COLOUR; pwd; exit 7"),
        name="build",
        cwd="/usr",
        env={"COLOUR": "blue"},
        tags=["kind=build", "nightly"],
    )
    record = sessions.ended(started)
    assert record.text(wire.SESSION_NAME) == "build"
    assert record.text(wire.SESSION_STATUS) == "exited"
    assert record.number(wire.SESSION_EXIT_CODE) == 7
    assert wire.SESSION_EXIT_SIGNAL not in record
    assert record.text(wire.SESSION_CWD) == "/usr"
    assert record.text(wire.SESSION_LAUNCH_STAGE) == "running"
    assert wire.SESSION_LAST_ERROR not in record
    assert wire.SESSION_KEEPER_PID not in record
    assert record.number(wire.SESSION_PID) > 1
    times = [record.number(tag) for tag in (wire.SESSION_CREATED, wire.SESSION_STARTED, wire.SESSION_ENDED)]
    assert before <= times[0] <= times[1] <= times[2] <= time.time()
    assert record.number(wire.SESSION_STDOUT_BYTES) == len("out\nblue\n/usr\n")
    assert record.number(wire.SESSION_STDERR_BYTES) == len("err\n")
    folder = Path(record.text(wire.SESSION_STATE_DIR))
    assert folder == sessions.folder / started
    assert folder.stat().st_mode & 0o7777 == 0o700
    assert (folder / "stdout.log").read_text() == "out\nblue\n/usr\n"
    (frame,) = sessions.frames(started)
    fields = wire.decode_fields(frame.payload)
    assert [value for tag, value in fields if tag == wire.SESSION_TAG] == [b"kind=build", b"nightly"]
    assert [value for tag, value in fields if tag == wire.SESSION_ARGUMENT][:2] == [b"sh", b"-c"]
    assert [value for tag, value in fields if tag == wire.SESSION_ENV] == [b"COLOUR=blue"]
    assert list(sessions.list()) == [started]


def test_death_by_a_signal(sessions: Sessions) -> None:
    record = sessions.ended(sessions.start("sh", "-c", "kill -9 $$"))
    assert (record.text(wire.SESSION_STATUS), record.number(wire.SESSION_EXIT_SIGNAL)) == ("exited", 9)
    assert wire.SESSION_EXIT_CODE not in record


def test_attach_sees_all_and_the_end(sessions: Sessions) -> None:
    started = sessions.start(
        "sh", "-c", "echo one; read line; echo got $line; echo bad >&2; exit 3", stdin=True
    )
    with sessions.attach(started, write=True) as attached:
        assert attached.is_writer
        assert attached.has_stdin
        attached.said(b"one\n")
        record = sessions.record(started)
        assert record.text(wire.SESSION_STATUS) == "running"
        assert record.number(wire.SESSION_PID) == attached.pid
        assert (record.number(wire.SESSION_READERS), record.number(wire.SESSION_WRITER)) == (1, 1)
        attached.feed(b"word\n")
        assert attached.to_exit().number(wire.EXIT_CODE) == 3
        assert (attached.out, attached.err) == (b"one\ngot word\n", b"bad\n")


def test_detach_and_attach_again_lose_nothing_and_repeat_nothing(sessions: Sessions, tmp_path: Path) -> None:
    enough = tmp_path / "enough"
    program = f"i=0; until [ -e {enough} ]; do echo $i; i=$((i+1)); sleep 0.005; done"
    started = sessions.start("sh", "-c", program)
    got = b""
    for _ in range(4):
        attached = sessions.attach(started)
        assert attached.offsets[0] == len(got)
        attached.until(lambda self: len(self.out) > 60)
        got += attached.out
        attached.detach()
    enough.touch()
    with sessions.attach(started) as attached:
        assert attached.to_exit().number(wire.EXIT_CODE) == 0
        got += attached.out
    assert got == b"".join(b"%d\n" % i for i in range(got.count(b"\n")))


def test_replay_of_all_or_nothing(sessions: Sessions) -> None:
    started = sessions.start("sh", "-c", "echo first; read x; echo second", stdin=True)
    attached = sessions.attach(started)
    attached.said(b"first\n")
    attached.detach()
    with sessions.attach(started, replay="all") as everything, sessions.attach(started, replay="none") as now:
        everything.said(b"first\n")
        assert now.offsets == [6, 0]
        sessions.send(started, b"\n")
        now.to_exit()
        everything.to_exit()
        assert (everything.out, now.out) == (b"first\nsecond\n", b"second\n")


def test_what_was_seen_last_after_the_end_counts(sessions: Sessions) -> None:
    started = sessions.start("echo", "hello")
    sessions.ended(started)
    attached = sessions.attach(started)
    assert attached.to_exit().number(wire.EXIT_CODE) == 0
    assert attached.out == b"hello\n"
    attached.detach()
    with sessions.attach(started) as again:
        again.to_exit()
        assert (again.out, again.offsets) == (b"", [6, 0])
    with sessions.attach(started, replay="all") as again:
        again.to_exit()
        assert again.out == b"hello\n"


def test_a_host_that_goes_away_is_a_detach(sessions: Sessions) -> None:
    started = sessions.start("sh", "-c", "echo one; read x; echo two; read x", stdin=True)
    with sessions.attach(started, write=True) as attached:
        attached.said(b"one\n")
        attached.seen()
    sessions.until(started, lambda record: record.number(wire.SESSION_READERS) == 0)
    assert sessions.status(started) == "running"
    with sessions.attach(started, write=True) as again:
        assert again.is_writer
        assert again.offsets == [4, 0]
        again.feed(b"\n")
        again.said(b"two\n")
        assert again.out == b"two\n"


def test_one_writer_many_readers(sessions: Sessions) -> None:
    started = sessions.start("cat", stdin=True)
    with ExitStack() as stack:
        writer = stack.enter_context(sessions.attach(started, write=True))
        readers = [stack.enter_context(sessions.attach(started, write=True)) for _ in range(5)]
        assert [reader.is_writer for reader in readers] == [False] * 5
        assert sessions.record(started).number(wire.SESSION_READERS) == 6
        writer.feed(b"to all\n")
        for reader in readers:
            reader.said(b"to all\n")
        with pytest.raises(Refused) as caught:
            sessions.send(started, b"me too\n")
        assert caught.value.code == "busy"
        readers[0].send(wire.encode_stdin(b"x"))
        assert readers[0].refused().code == "busy"
        writer.detach()
        with sessions.attach(started, write=True) as next_one:
            assert next_one.is_writer
            next_one.send(wire.encode_stdin(b""))
            next_one.to_exit()
        for reader in readers[1:]:
            assert reader.to_exit().number(wire.EXIT_CODE) == 0
            assert reader.out == b"to all\n"


def test_send_and_end_of_file(sessions: Sessions) -> None:
    started = sessions.start("wc", "-c", stdin=True)
    for _ in range(3):  # one after the other: each finds the former gone
        sessions.send(started, b"x" * 400_000)
    sessions.send(started, b"last", end=True)
    sessions.ended(started)
    assert sessions.logs(started) == (b"1200004\n", b"")
    with pytest.raises(Refused) as caught:
        sessions.send(started, b"more")
    assert caught.value.code == "not_running"


def test_closed_stdin(sessions: Sessions) -> None:
    for started in (
        sessions.start("sleep", "60"),
        sessions.start("sh", "-c", "cat; exec sleep 60", stdin=True),
    ):
        with suppress(Refused):
            sessions.send(started, b"", end=True)
        sessions.until(started, lambda record: record.text(wire.SESSION_STATUS) == "running")
        with pytest.raises(Refused) as caught:
            sessions.send(started, b"data")
        assert caught.value.code == "closed"
        with sessions.attach(started, write=True) as attached:
            assert not attached.has_stdin
            attached.feed(b"dropped" * 100_000)  # and granted back


def test_a_terminal_with_resize_keys_and_signals(sessions: Sessions) -> None:
    program = (
        "trap 'stty size' WINCH; trap 'echo interrupted' INT; stty size;"
        'while read line; do echo "<$line>"; done; exit 9'
    )
    started = sessions.start("bash", "-c", program, terminal=True)
    with sessions.attach(started, write=True) as attached:
        attached.said(b"30 90\r\n")
        attached.send(wire.encode_resize(50, 132))
        attached.feed(b"hello\r")
        attached.said(b"<hello>\r\n")
        attached.said(b"50 132\r\n")
        attached.send(wire.encode_signal(signal.SIGINT))
        attached.said(b"interrupted\r\n")
        attached.detach()
    with sessions.attach(started, write=True) as attached:
        attached.feed(b"again\r")
        attached.said(b"<again>\r\n")
        attached.send(wire.encode_stdin(b""))  # Ctrl-D
        assert attached.to_exit().number(wire.EXIT_CODE) == 9


def test_attach_sets_the_terminals_size(sessions: Sessions) -> None:
    started = sessions.start("sh", "-c", "read x; stty size", terminal=True)
    request = sessionwire.encode_session_attach(started, write=True, rows=11, cols=22)
    with Connection(sessions.agent, request) as connection:
        connection.want(wire.FRAME_STARTED)
        connection.send(wire.encode_stdin(b"\r"))
        out = b""
        while (frame := connection.next()) is not None and frame.type == wire.FRAME_STDOUT:
            out += frame.payload
    assert b"11 22\r\n" in out


def test_signal(sessions: Sessions) -> None:
    started = sessions.start(
        "sh", "-c", "trap 'echo usr1; exit 4' USR1; echo ready; while :; do sleep 0.02; done"
    )
    with sessions.attach(started) as attached:
        attached.said(b"ready\n")
        sessions.signal(started, signal.SIGUSR1)
        assert attached.to_exit().number(wire.EXIT_CODE) == 4
    for wrong, code in ((started, "not_running"), (ID, "not_found")):
        with pytest.raises(Refused) as caught:
            sessions.signal(wrong, signal.SIGUSR1)
        assert caught.value.code == code


def test_stop(sessions: Sessions) -> None:
    started = sessions.start("sleep", "60")
    record = sessions.stop(started)
    assert (record.text(wire.SESSION_STATUS), record.number(wire.SESSION_EXIT_SIGNAL)) == ("exited", 15)
    assert sessions.stop(started).text(wire.SESSION_STATUS) == "exited"  # nothing left to do
    with pytest.raises(Refused) as caught:
        sessions.stop(ID)
    assert caught.value.code == "not_found"


def test_stop_kills_what_ignores_it_and_its_group(sessions: Sessions) -> None:
    started = sessions.start("sh", "-c", "trap '' TERM; sleep 61 & echo $!; while :; do sleep 0.05; done")
    with sessions.attach(started) as attached:
        attached.said(b"\n")
        child = int(attached.out)
        with Connection(sessions.agent, sessionwire.encode_session_stop(started, 600_000)) as stopping:
            sessions.until(started, lambda record: record.text(wire.SESSION_STATUS) == "stopping")
            begun = time.monotonic()
            sessions.stop(started, grace_ms=600)  # a stop may be hurried, so that nothing here has to be
            assert time.monotonic() - begun > 0.5
            record = Fields(stopping.want(wire.FRAME_OK).payload)
        assert record.number(wire.SESSION_EXIT_SIGNAL) == signal.SIGKILL
        assert attached.to_exit().number(wire.EXIT_SIGNAL) == signal.SIGKILL
    wait_gone(child)


def test_stop_of_a_host_that_goes_is_still_done(sessions: Sessions) -> None:
    started = sessions.start("sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
    with Connection(sessions.agent, sessionwire.encode_session_stop(started, 500)):
        pass
    assert sessions.ended(started).number(wire.SESSION_EXIT_SIGNAL) == signal.SIGKILL


def test_remove(sessions: Sessions) -> None:
    ended, running = sessions.start("true"), sessions.start("sleep", "60")
    sessions.ended(ended)
    sessions.remove(ended)
    assert not (sessions.folder / ended).exists()
    with pytest.raises(Refused) as caught:
        sessions.remove(running)
    assert caught.value.code == "running"
    record = sessions.record(running)
    with sessions.attach(running) as attached:
        sessions.remove(running, force=True)
        with suppress(Refused):  # that it was removed, or how it ended: whichever it hears first
            assert attached.to_exit().number(wire.EXIT_SIGNAL) == signal.SIGKILL
    wait_gone(record.number(wire.SESSION_PID))
    wait_gone(record.number(wire.SESSION_KEEPER_PID))
    assert sessions.list() == {}
    for request in (
        sessionwire.encode_session_remove(ended),
        sessionwire.encode_session_list(ended),
        sessionwire.encode_session_logs(ended),
        sessionwire.encode_session_attach(ended),
        sessionwire.encode_session_send(ended),
    ):
        with pytest.raises(Refused) as caught:
            sessions.ask(request)
        assert caught.value.code == "not_found"


def test_logs_tail_and_one_stream(sessions: Sessions) -> None:
    program = (
        "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done;"
        "echo no newline | tr -d '\\n'; echo error >&2"
    )
    started = sessions.start("sh", "-c", program)
    sessions.ended(started)
    whole = b"".join(b"line %d\n" % i for i in range(20000)) + b"no newline"
    assert sessions.logs(started) == (whole, b"error\n")
    assert sessions.logs(started, only="stdout") == (whole, b"")
    assert sessions.logs(started, only="stderr") == (b"", b"error\n")
    assert sessions.logs(started, tail=2) == (b"line 19999\nno newline", b"error\n")
    assert sessions.logs(started, tail=0) == (b"", b"")
    for tail in (1, 15000, 20000, 20001, 1 << 63):
        assert sessions.logs(started, tail=tail)[0] == b"".join(whole.splitlines(keepends=True)[-tail:])


def test_logs_follow_to_the_end(sessions: Sessions) -> None:
    started = sessions.start("sh", "-c", "echo old; echo new; read x; echo last; echo e >&2", stdin=True)
    sessions.until(started, lambda record: record.number(wire.SESSION_STDOUT_BYTES) == 8)
    request = sessionwire.encode_session_logs(started, follow=True, tail=1)
    with Connection(sessions.agent, request) as connection:
        assert connection.want(wire.FRAME_STDOUT).payload == b"new\n"
        assert sessions.record(started).number(wire.SESSION_READERS) == 0
        assert sessions.logs(started) == (b"old\nnew\n", b"")
        sessions.send(started, b"\n")
        rest = {wire.FRAME_STDOUT: b"", wire.FRAME_STDERR: b""}
        while (frame := connection.next()) is not None and frame.type != wire.FRAME_OK:
            rest[frame.type] += frame.payload
        assert rest == {wire.FRAME_STDOUT: b"last\n", wire.FRAME_STDERR: b"e\n"}
    sessions.ended(started)
    assert sessions.logs(started, follow=True) == (b"old\nnew\nlast\n", b"e\n")


@pytest.mark.parametrize(
    ("argv", "user", "cwd", "stage", "message", "status"),
    [
        (["true"], "nobody-at-all", "", "user", "no such user or group: nobody-at-all", None),
        (["true"], "", "/no/such/folder", "cwd", "/no/such/folder: No such file", None),
        (["no-such-command"], "", "", "exec", "no-such-command: No such file", 127),
        (["/etc/passwd"], "", "", "exec", "/etc/passwd: Permission denied", 126),
    ],
)
def test_launches_that_fail_are_kept(
    sessions: Sessions, argv: list[str], user: str, cwd: str, stage: str, message: str, status: int | None
) -> None:
    started = sessions.start(*argv, user=user, cwd=cwd)
    record = sessions.record(started)
    assert record.text(wire.SESSION_STATUS) == "failed"
    assert record.text(wire.SESSION_LAUNCH_STAGE) == stage
    assert record.text(wire.SESSION_LAUNCH_MESSAGE).startswith(message)
    assert record.text(wire.SESSION_LAST_ERROR).startswith(message)
    assert wire.SESSION_PID not in record
    code = record.number(wire.SESSION_EXIT_CODE) if wire.SESSION_EXIT_CODE in record else None
    assert code == status
    with sessions.attach(started) as attached, pytest.raises(Refused) as caught:
        attached.to_exit()
    assert caught.value.code == "failed"
    assert caught.value.message.startswith(message)
    sessions.remove(started)


def test_names_and_ids_are_taken_once(sessions: Sessions) -> None:
    started = sessions.start("sleep", "60", name="one")
    for session_id, name in ((started, "two"), (ID, "one")):
        with pytest.raises(Refused) as caught:
            sessions.start("true", session_id=session_id, name=name)
        assert caught.value.code == "exists"
    assert list(sessions.list()) == [started]
    sessions.stop(started)
    with pytest.raises(Refused) as caught:
        sessions.start("true", name="one")
    assert caught.value.code == "exists"
    sessions.remove(started)
    sessions.remove(sessions.start("sleep", "60", name="one", session_id=started), force=True)


def test_big_output_is_whole_for_all_readers(sessions: Sessions) -> None:
    program = "exec 3>&1; head -c 20000000 /dev/urandom | tee /dev/fd/3 | sha256sum >&2"
    started = sessions.start("sh", "-c", program)
    with sessions.attach(started) as one, sessions.attach(started, replay="all") as two:
        digests = []
        for reader in (one, two):
            assert reader.to_exit().number(wire.EXIT_CODE) == 0
            assert len(reader.out) == 20_000_000
            assert hashlib.sha256(reader.out).hexdigest() == reader.err.split()[0].decode()
            digests.append(reader.err)
        assert digests[0] == digests[1]


def test_64_mib_through_stdin_and_back(sessions: Sessions) -> None:
    started = sessions.start("sha256sum", stdin=True)
    data = os.urandom(1 << 20) * 24
    with sessions.attach(started, write=True) as attached:
        attached.feed(data)
        attached.send(wire.encode_stdin(b""))
        assert attached.to_exit().number(wire.EXIT_CODE) == 0
        assert attached.out.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_readers_that_never_read_stall_nobody(sessions: Sessions) -> None:
    started = sessions.start("sh", "-c", "head -c 8000000 /dev/zero; echo done >&2; read x", stdin=True)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(sessions.attach(started, replay="all"))
        with sessions.attach(started, write=True) as attached:
            attached.until(lambda self: self.err == b"done\n" and len(self.out) == 8_000_000)
            attached.feed(b"\n")
            attached.to_exit()
        assert sessions.ended(started).number(wire.SESSION_EXIT_CODE) == 0


def test_a_slow_reader_gets_all_of_a_session_that_has_ended(sessions: Sessions) -> None:
    started = sessions.start("sh", "-c", "read x; head -c 3000000 /dev/zero", stdin=True)
    with sessions.attach(started) as attached:
        sessions.send(started, b"\n")
        sessions.ended(started)
        assert attached.to_exit().number(wire.EXIT_CODE) == 0
        assert len(attached.out) == 3_000_000


def test_stdin_that_nobody_reads_stalls_nothing(sessions: Sessions) -> None:
    started = sessions.start("sh", "-c", "echo ready; exec sleep 60", stdin=True)
    with sessions.attach(started, write=True) as attached:
        attached.said(b"ready\n")
        attached.feed(b"x" * wire.WIRE_STDIN_WINDOW)
        attached.detach()
    with sessions.attach(started, write=True) as attached:  # what is left waits, and so does this
        attached.feed(b"y" * wire.WIRE_STDIN_WINDOW)
        assert sessions.status(started) == "running"
        attached.send(wire.encode_signal(signal.SIGTERM))
        assert attached.to_exit().number(wire.EXIT_SIGNAL) == signal.SIGTERM


def test_background_processes_do_not_hold_the_end(sessions: Sessions) -> None:
    started = sessions.start("sh", "-c", "sleep 600 & echo $!; exit 5")
    record = sessions.ended(started)
    assert record.number(wire.SESSION_EXIT_CODE) == 5
    child = int(sessions.logs(started)[0])
    assert not is_gone(child)  # it is left alone, as by an exec
    os.kill(child, signal.SIGKILL)
    noisy = sessions.start("sh", "-c", "timeout 120 yes & exit 6")
    assert sessions.ended(noisy).number(wire.SESSION_EXIT_CODE) == 6


def test_sessions_outlive_the_server(sessions: Sessions, agent_program: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = (
        f"i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1));"
        f"while [ $i -gt 50 ] && [ ! -e {seen} ]; do sleep 0.02; done; done"
    )
    started = sessions.start("sh", "-c", script)
    with sessions.attach(started) as attached:
        attached.said(b"\n5\n")
        sessions.agent.process.kill()
        sessions.agent.process.wait()
        (sessions.agent.folder / "v.sock").unlink()
        second = Agent(agent_program, sessions.agent.folder)
        try:
            again = Sessions(second)
            assert again.status(started) == "running"
            seen.touch()
            assert attached.to_exit().number(wire.EXIT_CODE) == 0  # it has not even noticed
            assert attached.out == b"".join(b"%d\n" % i for i in range(100))
            assert again.ended(started).number(wire.SESSION_EXIT_CODE) == 0
            assert again.logs(started)[0] == attached.out
            again.remove_all()
        finally:
            second.stop()
