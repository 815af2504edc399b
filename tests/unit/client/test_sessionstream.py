"""Attach, logs and send against a scripted agent on a socket pair: every turn and every lie."""

from __future__ import annotations

import os
import pty
import signal
import socket
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from banger.client.agentconnection import AgentConnection
from banger.client.attach import Attachment, AttachOptions, Outcome
from banger.client.errors import GuestUnreachable
from banger.client.sessionstream import LogStream, Sender
from banger.errors import BangerError, ErrorCode
from banger.guest import sessionwire, wire
from banger.guest.wire import Fields, Frame, FrameReader, encode_fields, encode_frame

SESSION = "ab" * 16
HELLO = encode_frame(wire.FRAME_HELLO, encode_fields([(1, 1), (2, "exec sessions"), (3, "1"), (4, "b")]))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banger.client.attach.SEEN_EVERY_S", 0.05)


def out(data: bytes) -> bytes:
    return encode_frame(wire.FRAME_STDOUT, data)


def started(*, writer: bool = True, stdout: int = 0, stderr: int = 0) -> bytes:
    fields = [(wire.STARTED_PID, 7), (wire.STARTED_FLAGS, int(writer))]
    fields += [(wire.STARTED_STDOUT_OFFSET, stdout), (wire.STARTED_STDERR_OFFSET, stderr)]
    return encode_frame(wire.FRAME_STARTED, encode_fields([*fields]))


def exited(code: int = 0) -> bytes:
    return encode_frame(wire.FRAME_EXIT, encode_fields([(wire.EXIT_CODE, code)]))


def ok() -> bytes:
    return encode_frame(wire.FRAME_OK)


class Peer:
    """The agent's end. read() waits for the next frame of the client's."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        end.settimeout(60)
        self._reader = FrameReader()
        self._frames: list[Frame] = []

    def say(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def read(self, *, skip: tuple[int, ...] = ()) -> Frame:
        while True:
            while not self._frames:
                data = self.socket.recv(65536)
                assert data, "the client has gone"
                self._frames += self._reader.feed(data)
            frame = self._frames.pop(0)
            if frame.type not in skip:
                return frame

    def until(self, kind: int) -> list[Frame]:
        """Everything up to that frame, which is the last."""
        frames = [self.read()]
        while frames[-1].type != kind:
            frames.append(self.read())
        return frames


@contextmanager
def agent(script: Callable[[Peer], None]) -> Iterator[AgentConnection]:
    ours, theirs = socket.socketpair()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            script(Peer(theirs))
        except BaseException as failure:
            failures.append(failure)
        finally:
            theirs.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield AgentConnection(ours, HELLO)
    finally:
        ours.close()
        thread.join(60)
    if failures:
        raise failures[0]


class Pipes:
    """What would be our stdout and stderr, read to the end in threads."""

    def __init__(self) -> None:
        self._pairs = [os.pipe(), os.pipe()]
        self.stdout, self.stderr = self._pairs[0][1], self._pairs[1][1]
        self._got = [b"", b""]
        self._threads = [threading.Thread(target=self._drain, args=(number,)) for number in (0, 1)]
        for thread in self._threads:
            thread.start()

    def _drain(self, number: int) -> None:
        while data := os.read(self._pairs[number][0], 65536):
            self._got[number] += data

    def until(self, text: bytes) -> None:
        deadline = time.monotonic() + 60
        while text not in self._got[0]:
            assert time.monotonic() < deadline, self._got
            time.sleep(0.005)

    def end(self) -> tuple[bytes, bytes]:
        for _, write in self._pairs:
            os.close(write)
        for thread in self._threads:
            thread.join(60)
        for read, _ in self._pairs:
            os.close(read)
        return self._got[0], self._got[1]


def attach(
    script: Callable[[Peer], None],
    *,
    stdin: int | None = None,
    terminal: bool = False,
    write: bool = False,
    pass_end: bool = False,
    reconnect: Callable[[], AgentConnection] | None = None,
    notices: list[str] | None = None,
) -> tuple[Outcome, bytes, bytes]:
    pipes = Pipes()
    try:
        with agent(script) as connection:
            outcome = Attachment(
                connection,
                AttachOptions(SESSION, terminal=terminal, write=write, pass_end=pass_end),
                stdin=stdin,
                stdout=pipes.stdout,
                stderr=pipes.stderr,
                reconnect=reconnect,
                on_read_only=lambda: (notices if notices is not None else []).append("read only"),
            ).run()
    finally:
        shown = pipes.end()
    return outcome, *shown


def seen(frame: Frame) -> tuple[int, int]:
    assert frame.type == wire.FRAME_SESSION_SEEN
    fields = Fields(frame.payload)
    return fields.number(wire.SEEN_STDOUT_OFFSET), fields.number(wire.SEEN_STDERR_OFFSET)


def test_output_status_and_what_was_seen() -> None:
    told: list[tuple[int, int]] = []

    def script(peer: Peer) -> None:
        request = peer.read()
        assert request.type == wire.FRAME_SESSION_ATTACH
        assert Fields(request.payload).text(wire.SESSION_ID) == SESSION
        peer.say(started(stdout=100, stderr=10), out(b"hello"), encode_frame(wire.FRAME_STDERR, b"oh"))
        peer.say(exited(7))
        told.append(seen(peer.read()))

    assert attach(script) == (Outcome(7, False), b"hello", b"oh")
    assert told == [(105, 12)]


def test_ended_by_a_signal() -> None:
    def script(peer: Peer) -> None:
        peer.read()
        peer.say(started(), encode_frame(wire.FRAME_EXIT, encode_fields([(wire.EXIT_SIGNAL, 9)])))

    assert attach(script)[0] == Outcome(137, False)


def test_seen_is_told_at_once_where_it_is_much_and_after_a_while_where_it_is_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("banger.client.attach.SEEN_EVERY_S", 600.0)

    def script(peer: Peer) -> None:
        peer.read()
        peer.say(started(), out(b"x" * 50_000), out(b"x" * 50_000))
        assert seen(peer.read())[0] >= 65536
        monkeypatch.setattr("banger.client.attach.SEEN_EVERY_S", 0.05)
        peer.say(out(b"y"))
        while seen(peer.read())[0] < 100_001:
            pass
        peer.say(exited())

    assert attach(script)[0] == Outcome(0, False)


@pytest.mark.parametrize("typed", [b"\x10\x11", b"q\x10\x11more"])
def test_detach_keys_leave_a_terminal_session(typed: bytes) -> None:
    main, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)

    def script(peer: Peer) -> None:
        request = peer.read()
        fields = Fields(request.payload)
        assert fields.number(wire.SESSION_FLAGS) == wire.SESSION_ATTACH_WRITE
        peer.say(started(stdout=5), out(b"$ "))
        assert peer.read().type == wire.FRAME_RESIZE
        assert peer.read().type == wire.FRAME_RESIZE
        assert not termios.tcgetattr(terminal)[3] & (termios.ECHO | termios.ISIG)
        os.write(main, b"l")
        assert peer.read(skip=(wire.FRAME_SESSION_SEEN,)) == Frame(wire.FRAME_STDIN, b"l")
        os.write(main, typed)
        frames = peer.until(wire.FRAME_SESSION_DETACH)
        told = [frame for frame in frames if frame.type == wire.FRAME_SESSION_SEEN]
        assert not told or seen(told[-1]) == (7, 0)
        said = b"".join(frame.payload for frame in frames if frame.type == wire.FRAME_STDIN)
        assert said == typed.partition(b"\x10\x11")[0]
        peer.say(out(b"dropped"), ok())

    try:
        outcome, shown, _ = attach(script, stdin=terminal, terminal=True, write=True)
        assert outcome == Outcome(0, True)
        assert shown == b"$ "
        assert termios.tcgetattr(terminal) == before
    finally:
        os.close(main)
        os.close(terminal)


def test_a_piped_session_is_typed_at_by_lines() -> None:
    """Its end of file is ctrl-d; the keys leave it after that, too, and in the middle of a line."""
    main, terminal = pty.openpty()

    def script(peer: Peer) -> None:
        peer.read()
        peer.say(started(), out(b"?"))
        assert peer.read().type == wire.FRAME_SESSION_SEEN
        assert termios.tcgetattr(terminal)[3] & termios.ECHO
        os.write(main, b"typp\x7fed\n")
        assert peer.read() == Frame(wire.FRAME_STDIN, b"typed\n")
        os.write(main, b"\x04")
        assert peer.read() == Frame(wire.FRAME_STDIN, b"")
        os.write(main, b"in vain\nhalf\x10\x11")
        assert peer.read().type == wire.FRAME_SESSION_DETACH
        peer.say(ok())

    try:
        assert attach(script, stdin=terminal, write=True)[0] == Outcome(0, True)
    finally:
        os.close(main)
        os.close(terminal)


def test_a_terminal_is_put_back_when_the_guest_goes() -> None:
    main, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)

    def script(peer: Peer) -> None:
        peer.read()
        peer.say(started(), out(b"half"))
        peer.until(wire.FRAME_RESIZE)

    try:
        with pytest.raises(GuestUnreachable):
            attach(script, stdin=terminal, terminal=True, write=True)
        assert termios.tcgetattr(terminal) == before
    finally:
        os.close(main)
        os.close(terminal)


def test_a_second_one_reads_only_and_is_told() -> None:
    main, terminal = pty.openpty()
    notices: list[str] = []

    def script(peer: Peer) -> None:
        peer.read()
        peer.say(started(writer=False), out(b"x"))
        seen(peer.read())
        os.write(main, b"typed in vain\x10\x11")
        frames = peer.until(wire.FRAME_SESSION_DETACH)
        assert not [frame for frame in frames if frame.type == wire.FRAME_STDIN]
        peer.say(ok())

    try:
        outcome = attach(script, stdin=terminal, terminal=True, write=True, notices=notices)[0]
        assert outcome == Outcome(0, True)
    finally:
        os.close(main)
        os.close(terminal)
    assert notices == ["read only"]


@pytest.mark.parametrize("pass_end", [True, False])
def test_the_end_of_a_pipe_is_the_sessions_only_where_that_was_asked(pass_end: bool) -> None:
    read, write = os.pipe()
    os.write(write, b"typed")
    os.close(write)

    def script(peer: Peer) -> None:
        peer.read()
        peer.say(started())
        assert peer.read() == Frame(wire.FRAME_STDIN, b"typed")
        if pass_end:
            assert peer.read() == Frame(wire.FRAME_STDIN, b"")
        peer.say(exited())
        assert not peer.socket.recv(100)

    try:
        assert attach(script, stdin=read, write=True, pass_end=pass_end)[0] == Outcome(0, False)
    finally:
        os.close(read)


def test_stdin_keeps_to_the_window() -> None:
    read, write = os.pipe()
    data = os.urandom(wire.WIRE_STDIN_WINDOW + 1000)

    def feed() -> None:
        with os.fdopen(write, "wb") as pipe:
            pipe.write(data)

    def script(peer: Peer) -> None:
        peer.read()
        peer.say(started())
        got = b""
        while len(got) < wire.WIRE_STDIN_WINDOW:
            got += peer.read().payload
        assert len(got) == wire.WIRE_STDIN_WINDOW
        peer.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            peer.read()
        peer.socket.settimeout(60)
        peer.say(encode_frame(wire.FRAME_WINDOW, encode_fields([(wire.WINDOW_BYTES, 5000)])))
        while len(got) < len(data):
            got += peer.read().payload
        assert got == data
        peer.say(exited())

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        attach(script, stdin=read, write=True)
    finally:
        thread.join(60)
        os.close(read)


def test_a_broken_connection_goes_on_at_the_very_byte() -> None:
    """As when a daemon that passes the bytes on is restarted: the agent knows less than was shown."""

    def first(peer: Peer) -> None:
        peer.read()
        peer.say(started(stdout=10), out(b"0123456789"))

    def second(peer: Peer) -> None:
        request = peer.read()
        assert request.type == wire.FRAME_SESSION_ATTACH
        peer.say(started(stdout=13), out(b"34567"), out(b"89abc"), exited(3))

    with agent(second) as again:
        connections = [again]
        outcome, shown, _ = attach(first, reconnect=connections.pop)
    assert (outcome, shown) == (Outcome(3, False), b"0123456789abc")


def test_an_agent_that_always_hangs_up_is_asked_once() -> None:
    def script(peer: Peer) -> None:
        peer.read()
        peer.say(started())

    def hangs_up(peer: Peer) -> None:
        peer.read()

    with agent(hangs_up) as again:
        connections = [again]
        with pytest.raises(GuestUnreachable):
            attach(script, reconnect=connections.pop)
    assert not connections


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        started()[:4],
        out(b"before it began"),
        b"\xff" * 10,
        started() + encode_frame(wire.FRAME_EXIT),
        encode_frame(wire.FRAME_STARTED, encode_fields([(wire.STARTED_FLAGS, b"no number")])),
    ],
)
def test_nonsense_is_an_error(answer: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.read()
        peer.say(answer)

    with pytest.raises(BangerError) as caught:
        attach(script)
    assert caught.value.code in (ErrorCode.GUEST_UNREACHABLE, ErrorCode.GUEST_ERROR)


def test_a_refusal_has_its_code() -> None:
    def script(peer: Peer) -> None:
        peer.read()
        peer.say(
            encode_frame(wire.FRAME_ERROR, encode_fields([(1, "not_found"), (2, "no such\x1b[m session")]))
        )

    with pytest.raises(BangerError) as caught:
        attach(script)
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert "\x1b" not in caught.value.brief


def test_a_reader_of_ours_that_goes_is_a_detach() -> None:
    read, write = os.pipe()
    os.close(read)

    def script(peer: Peer) -> None:
        peer.read()
        peer.say(started(), out(b"x" * 100))
        peer.until(wire.FRAME_SESSION_DETACH)
        peer.say(ok())

    try:
        with agent(script) as connection:
            options = AttachOptions(SESSION, terminal=False, write=False)
            assert Attachment(connection, options, stdin=None, stdout=write).run() == Outcome(141, True)
    finally:
        os.close(write)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_to_one_who_only_reads_are_a_detach(number: signal.Signals) -> None:
    def script(peer: Peer) -> None:
        peer.read()
        peer.say(started(writer=False), out(b"x"))
        seen(peer.read())
        os.kill(os.getpid(), number)
        assert peer.read().type == wire.FRAME_SESSION_DETACH
        peer.say(ok())

    before = signal.getsignal(number)
    assert attach(script)[0] == Outcome(128 + number, True)
    assert signal.getsignal(number) == before


def test_interrupts_are_the_commands_where_one_types_until_the_third() -> None:
    read, write = os.pipe()

    def script(peer: Peer) -> None:
        peer.read()
        peer.say(started())
        for _ in range(2):
            peer.say(out(b"x"))  # it is in its loop now
            seen(peer.read(skip=(wire.FRAME_SIGNAL,)))
            os.kill(os.getpid(), signal.SIGINT)
            frame = peer.read()
            assert frame.type == wire.FRAME_SIGNAL
            assert Fields(frame.payload).number(wire.SIGNAL_NUMBER) == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        assert peer.read().type == wire.FRAME_SESSION_DETACH
        peer.say(ok())

    try:
        assert attach(script, stdin=read, write=True)[0] == Outcome(130, True)
    finally:
        os.close(read)
        os.close(write)


def test_logs_end_with_ok() -> None:
    def script(peer: Peer) -> None:
        request = Fields(peer.read().payload)
        assert request.number(wire.SESSION_TAIL_LINES) == 2
        assert request.number(wire.SESSION_FLAGS) == wire.SESSION_LOGS_FOLLOW
        peer.say(out(b"a\n"), encode_frame(wire.FRAME_STDERR, b"b\n"), ok())

    pipes = Pipes()
    with agent(script) as connection:
        stream = LogStream(connection, stdout=pipes.stdout, stderr=pipes.stderr)
        assert stream.run(sessionwire.encode_session_logs(SESSION, follow=True, tail=2)) == 0
    assert pipes.end() == (b"a\n", b"b\n")


@pytest.mark.parametrize("size", [0, 10, 2 * wire.WIRE_STDIN_WINDOW])
def test_send_sends_all_and_waits_for_ok(size: int) -> None:
    text = os.urandom(size)

    def script(peer: Peer) -> None:
        assert peer.read().type == wire.FRAME_SESSION_SEND
        got = b""
        while payload := peer.read().payload:
            got += payload
            peer.say(encode_frame(wire.FRAME_WINDOW, encode_fields([(wire.WINDOW_BYTES, len(payload))])))
        assert got == text
        peer.say(ok())

    with agent(script) as connection:
        Sender(connection, text=text).run(sessionwire.encode_session_send(SESSION, end=True))


def test_send_that_is_refused() -> None:
    def script(peer: Peer) -> None:
        peer.read()
        peer.say(encode_frame(wire.FRAME_ERROR, encode_fields([(1, "closed"), (2, "stdin is closed")])))

    with agent(script) as connection, pytest.raises(BangerError) as caught:
        Sender(connection, text=b"x" * 100).run(sessionwire.encode_session_send(SESSION))
    assert caught.value.code is ErrorCode.WRONG_STATE
