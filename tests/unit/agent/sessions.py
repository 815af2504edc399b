"""Speaks the session part of the agent's protocol, frame by frame, for test_sessions.py."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from banger.guest import sessionwire, wire
from banger.guest.wire import Fields, Frame, FrameReader
from tests.unit.agent.conftest import TIMEOUT_S, Agent


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Connection:
    """One request's connection. Frames after HELLO, one by one."""

    def __init__(self, agent: Agent, request: bytes, *, small_buffers: bool = False) -> None:
        self._reader = FrameReader()
        self._frames: list[Frame] = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        if small_buffers:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(f"{agent.vm_dir}/v.sock")
        self.socket.sendall(b"CONNECT 1024\n" + request)
        assert self.socket.recv(5) == b"OK 1\n"
        hello = self.next()
        assert hello is not None
        assert "sessions" in Fields(hello.payload).text(wire.HELLO_FEATURES).split()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def next(self) -> Frame | None:
        """The next frame; None at the end. Raises Refused for ERROR."""
        while not self._frames:
            piece = self.socket.recv(65536)
            if not piece:
                return None
            self._frames += self._reader.feed(piece)
        frame = self._frames.pop(0)
        if frame.type == wire.FRAME_ERROR:
            fields = Fields(frame.payload)
            raise Refused(fields.text(wire.ERROR_CODE), fields.text(wire.ERROR_MESSAGE))
        return frame

    def want(self, frame_type: int) -> Frame:
        frame = self.next()
        assert frame is not None, "the agent closed the connection"
        assert frame.type == frame_type, frame
        return frame


class Attached(Connection):
    """An attachment: output collected, what was seen told to the agent."""

    def __init__(self, agent: Agent, session_id: str, *, write: bool = False, replay: str = "unseen") -> None:
        request = sessionwire.encode_session_attach(session_id, write=write, replay=replay)
        super().__init__(agent, request)
        started = Fields(self.want(wire.FRAME_STARTED).payload)
        self.pid = started.number(wire.STARTED_PID)
        self.is_writer = bool(started.number(wire.STARTED_FLAGS) & wire.STARTED_FLAG_WRITER)
        self.has_stdin = bool(started.number(wire.STARTED_FLAGS) & wire.STARTED_FLAG_STDIN)
        self.offsets = [
            started.number(wire.STARTED_STDOUT_OFFSET),
            started.number(wire.STARTED_STDERR_OFFSET),
        ]
        self.out, self.err = b"", b""
        self.window = wire.WIRE_STDIN_WINDOW
        self.exit: Fields | None = None

    def take(self) -> bool:
        """One frame more. False at EXIT or the end."""
        frame = self.next()
        if frame is None:
            return False
        if frame.type == wire.FRAME_STDOUT:
            self.out += frame.payload
            self.offsets[0] += len(frame.payload)
        elif frame.type == wire.FRAME_STDERR:
            self.err += frame.payload
            self.offsets[1] += len(frame.payload)
        elif frame.type == wire.FRAME_WINDOW:
            self.window += Fields(frame.payload).number(wire.WINDOW_BYTES)
            assert self.window <= wire.WIRE_STDIN_WINDOW
        elif frame.type == wire.FRAME_EXIT:
            self.exit = Fields(frame.payload)
            return False
        else:
            raise AssertionError(frame)
        return True

    def until(self, wanted: Callable[[Attached], bool]) -> None:
        while not wanted(self):
            assert self.take(), (self.out[-200:], self.err[-200:])

    def said(self, text: bytes) -> None:
        self.until(lambda self: text in self.out)

    def to_exit(self) -> Fields:
        while self.take():
            pass
        assert self.exit is not None
        return self.exit

    def refused(self) -> Refused:
        """The ERROR that ends it."""
        try:
            while self.take():
                pass
        except Refused as error:
            return error
        raise AssertionError(self.exit)

    def feed(self, data: bytes) -> None:
        """All of it to stdin, within the window."""
        while data:
            while not self.window:
                assert self.take()
            piece = data[: min(self.window, wire.WIRE_MAX_PAYLOAD)]
            self.window -= len(piece)
            self.send(wire.encode_stdin(piece))
            data = data[len(piece) :]

    def seen(self) -> None:
        self.send(sessionwire.encode_session_seen(*self.offsets))

    def detach(self) -> None:
        """What came is seen; the agent has answered and forgotten this one when it returns."""
        self.seen()
        self.send(sessionwire.encode_session_detach())
        while (frame := self.next()) is not None and frame.type != wire.FRAME_OK:
            pass  # output on its way: not seen
        self.socket.close()


class Sessions:
    """The sessions of one agent."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    @property
    def folder(self) -> Path:
        return self.agent.folder / "v.sock.state" / "sessions"

    def ask(self, request: bytes) -> Fields:
        """The OK's fields."""
        with Connection(self.agent, request) as connection:
            return Fields(connection.want(wire.FRAME_OK).payload)

    def start(
        self,
        *argv: str,
        name: str = "",
        stdin: bool = False,
        terminal: bool = False,
        session_id: str = "",
        user: str = "",
        cwd: str = "",
        tags: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> str:
        """Its id. It may have failed to launch."""
        session_id = session_id or secrets.token_hex(16)
        record = self.ask(
            sessionwire.encode_session_start(
                session_id,
                name or f"s-{session_id[:8]}",
                argv=argv,
                env=env,
                cwd=cwd,
                user=user,
                tags=tags,
                terminal=terminal,
                stdin=stdin,
                rows=30,
                cols=90,
            )
        )
        assert record.text(wire.SESSION_ID) == session_id
        return session_id

    def frames(self, session_id: str | None = None) -> list[Frame]:
        frames = []
        with Connection(self.agent, sessionwire.encode_session_list(session_id)) as connection:
            while (frame := connection.next()) is not None and frame.type == wire.FRAME_SESSION:
                frames.append(frame)
            assert frame is not None
            assert frame.type == wire.FRAME_OK
        return frames

    def list(self) -> dict[str, Fields]:
        records = [Fields(frame.payload) for frame in self.frames()]
        return {record.text(wire.SESSION_ID): record for record in records}

    def record(self, session_id: str) -> Fields:
        (frame,) = self.frames(session_id)
        return Fields(frame.payload)

    def status(self, session_id: str) -> str:
        return self.record(session_id).text(wire.SESSION_STATUS)

    def until(self, session_id: str, wanted: Callable[[Fields], bool]) -> Fields:
        deadline = time.monotonic() + TIMEOUT_S
        while not wanted(record := self.record(session_id)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return record

    def ended(self, session_id: str) -> Fields:
        return self.until(session_id, lambda record: record.text(wire.SESSION_STATUS) in ("exited", "failed"))

    def attach(self, session_id: str, *, write: bool = False, replay: str = "unseen") -> Attached:
        return Attached(self.agent, session_id, write=write, replay=replay)

    def logs(
        self, session_id: str, *, follow: bool = False, tail: int | None = None, only: str = ""
    ) -> tuple[bytes, bytes]:
        request = sessionwire.encode_session_logs(
            session_id, follow=follow, stdout=only != "stderr", stderr=only != "stdout", tail=tail
        )
        out, err = b"", b""
        with Connection(self.agent, request) as connection:
            while (frame := connection.next()) is not None and frame.type != wire.FRAME_OK:
                if frame.type == wire.FRAME_STDOUT:
                    out += frame.payload
                else:
                    assert frame.type == wire.FRAME_STDERR
                    err += frame.payload
            assert frame is not None
        return out, err

    def send(self, session_id: str, data: bytes, *, end: bool = False) -> None:
        with Connection(self.agent, sessionwire.encode_session_send(session_id, end=end)) as connection:
            window = wire.WIRE_STDIN_WINDOW
            while data:
                if not window:
                    window += Fields(connection.want(wire.FRAME_WINDOW).payload).number(wire.WINDOW_BYTES)
                piece = data[: min(window, wire.WIRE_MAX_PAYLOAD)]
                window -= len(piece)
                connection.send(wire.encode_stdin(piece))
                data = data[len(piece) :]
            connection.send(wire.encode_stdin(b""))
            while (frame := connection.next()) is not None and frame.type == wire.FRAME_WINDOW:
                pass
            assert frame is not None
            assert frame.type == wire.FRAME_OK

    def signal(self, session_id: str, number: int) -> None:
        self.ask(sessionwire.encode_session_signal(session_id, number))

    def stop(self, session_id: str, *, grace_ms: int = 10_000) -> Fields:
        return self.ask(sessionwire.encode_session_stop(session_id, grace_ms))

    def remove(self, session_id: str, *, force: bool = False) -> None:
        self.ask(sessionwire.encode_session_remove(session_id, force=force))

    def remove_all(self) -> None:
        for session_id in self.list():
            self.remove(session_id, force=True)
