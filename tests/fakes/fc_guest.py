"""The guest that the fake Firecracker plays: an agent that speaks banger's agent protocol.

Part of the fake's process: the standard library only. Runs nothing: `cat` echoes, `echo` prints,
`sh -c 'exit N'` exits with N, everything else exits with 0.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

HELLO, ERROR, OK = 0x01, 0x02, 0x03
HEALTH, EXEC, SHUTDOWN, SYNC, TIME = 0x10, 0x11, 0x12, 0x13, 0x14
STDIN, STDOUT, STDERR, EXIT, RESIZE, SIGNAL, STARTED, WINDOW = 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27
READY, ACK, ENDING = 0x30, 0x31, 0x32
PAYLOAD_LIMIT = 65_536
AGENT_PORT = 1024
FEATURES = "exec health shutdown sync time"

Field = tuple[int, bytes]


def frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IB", len(payload), kind) + payload


def field(tag: int, value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        value = struct.pack("<Q", value)
    elif isinstance(value, str):
        value = value.encode()
    return struct.pack("<BI", tag, len(value)) + value


def fields(payload: bytes) -> list[Field]:
    """Raises ValueError when they do not fit the payload."""
    found: list[Field] = []
    at = 0
    while at < len(payload):
        if at + 5 > len(payload):
            raise ValueError("a cut field")
        tag, length = struct.unpack_from("<BI", payload, at)
        at += 5
        if at + length > len(payload):
            raise ValueError("a field past the end")
        found.append((tag, payload[at : at + length]))
        at += length
    return found


class Stream:
    """A non-blocking connection with buffers: bytes in to `received`, bytes out through `send`."""

    def __init__(self, loop: Loop, sock: socket.socket, received: Callable[[Stream], None]) -> None:
        self.loop, self.sock, self.received = loop, sock, received
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.open = True
        self.ended = False  # the other side sends no more
        self.closing = False
        sock.setblocking(False)
        loop.selector.register(sock, selectors.EVENT_READ, self.ready)

    def send(self, data: bytes) -> None:
        self.outbox += data
        self.flush()

    def finish(self) -> None:
        """Close once everything is sent."""
        self.closing = True
        self.flush()

    def close(self) -> None:
        if self.open:
            self.open = False
            self.loop.selector.unregister(self.sock)
            self.sock.close()

    def flush(self) -> None:
        if not self.open:
            return
        try:
            while self.outbox:
                del self.outbox[: self.sock.send(self.outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self.closing and not self.outbox:
            self.close()
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.outbox else 0)
        self.loop.selector.modify(self.sock, events, self.ready)

    def ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self.flush()
        if self.open and events & selectors.EVENT_READ:
            try:
                data = self.sock.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.ended = True
            self.inbox += data
            self.received(self)
            if self.ended:
                self.close()


class Loop:
    """selectors and timers: enough of an event loop, and started in no time."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self._timers.append((time.monotonic() + seconds, action))

    def run(self) -> None:
        while True:
            timeout = None
            if self._timers:
                timeout = max(0.0, min(when for when, _ in self._timers) - time.monotonic())
            for key, events in self.selector.select(timeout):
                if key.fileobj in self.selector.get_map():
                    key.data(events)
            now = time.monotonic()
            due = [timer for timer in self._timers if timer[0] <= now]
            self._timers = [timer for timer in self._timers if timer[0] > now]
            for _, action in due:
                action()


class Guest:
    """plan: `ready` (false: never says so), `boot_seconds`, `obeys` (false: ignores shutdown and keys),
    `answers` (false: takes connections and says nothing), `chatters` (fills the console)."""

    def __init__(self, loop: Loop, plan: dict[str, Any], *, console: Callable[[str], None]) -> None:
        self._loop, self._plan, self._console = loop, plan, console
        self._vsock_path = ""
        self._started = time.monotonic()
        self._boot_id = os.urandom(16).hex()
        self._phase = "early"
        self.serving = False
        self.end: Callable[[int], None] = os._exit

    def boot(self, vsock_path: str) -> None:
        self._vsock_path = vsock_path
        self._console("[    0.000000] Linux version 6.1.0-fake (the fake Firecracker's guest)\r\n")
        self._loop.later(float(self._plan.get("boot_seconds", 0.0)), self._serve)
        if self._plan.get("chatters"):
            self._chatter()

    def press_keys(self) -> None:
        if self._plan.get("obeys", True) and self.serving:
            self._go_down("reboot")

    def accept(self, sock: socket.socket) -> None:
        """A connection on v.sock: `CONNECT <port>\\n` in one write, else it is dropped."""
        Stream(self._loop, sock, self._handshake)

    def _chatter(self) -> None:
        self._console("still booting\r\n")
        self._loop.later(0.05, self._chatter)

    def _serve(self) -> None:
        self.serving = True
        self._phase = "init"
        self._console("banger-agent: serving\r\n")
        if self._plan.get("ready", True):
            self._call(frame(READY, self._hello()), 0.02, lambda: None)

    def _hello(self) -> bytes:
        return field(1, 1) + field(2, FEATURES) + field(3, "fake") + field(4, self._boot_id)

    def _call(self, message: bytes, pause: float, done: Callable[[], None]) -> None:
        """To the host's listener, again and again until it answers ACK."""

        def again() -> None:
            self._loop.later(pause, lambda: self._call(message, min(2.0, pause * 2), done))

        def answered(stream: Stream) -> None:
            if len(stream.inbox) >= 5 and stream.inbox[4] == ACK:
                stream.inbox.clear()
                stream.close()
                done()
            elif stream.ended:
                again()

        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(f"{self._vsock_path}_1025")
        except OSError:
            sock.close()
            again()
            return
        Stream(self._loop, sock, answered).send(message)

    def _handshake(self, stream: Stream) -> None:
        line, found, rest = bytes(stream.inbox).partition(b"\n")
        words = line.split()
        if not found or len(words) != 2 or words[0].upper() != b"CONNECT" or words[1] != b"%d" % AGENT_PORT:
            stream.close()
            return
        if not self._plan.get("answers", True):
            stream.inbox.clear()
            return
        stream.inbox[:] = rest
        session = Session(self, stream)
        stream.received = session.received
        stream.send(b"OK 1073741824\n" + frame(HELLO, self._hello()))
        if rest:
            session.received(stream)

    def health(self) -> bytes:
        uptime = int(time.monotonic() - self._started)
        numbers = (uptime, 0, 0, 5, 262_144, 200_000, 1 << 30, 1 << 29, 1 << 30, 1 << 29)
        payload = field(1, numbers[0]) + field(2, self._phase) + field(3, "/sbin/init")
        for tag in range(4, 11):
            payload += field(tag, numbers[tag - 1])
        return payload

    def shut_down(self, kind: str) -> None:
        if self._plan.get("obeys", True):
            self._go_down(kind)

    def _go_down(self, kind: str) -> None:
        if self._phase == "shutdown":
            return
        self._phase = "shutdown"
        self._console(f"reboot: {kind}\r\n")
        self._loop.later(1.0, lambda: self.end(0))
        self._loop.later(
            float(self._plan.get("shutdown_seconds", 0.0)),
            lambda: self._call(frame(ENDING, field(1, kind)), 0.02, lambda: self.end(0)),
        )


class Session:
    """One connection to the agent: one request."""

    def __init__(self, guest: Guest, stream: Stream) -> None:
        self._guest, self._stream = guest, stream
        self._echoing = False
        self._running = False

    def received(self, stream: Stream) -> None:
        box = stream.inbox
        while len(box) >= 5 and stream.open:
            length, kind = struct.unpack_from("<IB", box)
            if length > PAYLOAD_LIMIT:
                stream.close()
                return
            if len(box) < 5 + length:
                return
            payload = bytes(box[5 : 5 + length])
            del box[: 5 + length]
            self._handle(kind, payload)

    def _handle(self, kind: int, payload: bytes) -> None:
        if self._running:
            self._feed(kind, payload)
            return
        try:
            values = fields(payload)
        except ValueError:
            self._answer(ERROR, field(1, "bad_request") + field(2, "cut fields"))
            return
        match kind:
            case 0x10:
                self._answer(OK, self._guest.health())
            case 0x12:
                self._answer(OK)
                self._guest.shut_down(dict(values).get(1, b"poweroff").decode())
            case 0x13 | 0x14:
                self._answer(OK)
            case 0x11:
                self._exec([value.decode() for tag, value in values if tag == 1], dict(values).get(5))
            case _:
                self._answer(ERROR, field(1, "unsupported") + field(2, f"request {kind:#x}"))

    def _answer(self, kind: int, payload: bytes = b"") -> None:
        self._stream.send(frame(kind, payload))
        self._stream.finish()

    def _exec(self, argv: list[str], flags: bytes | None) -> None:
        if not argv:
            self._answer(ERROR, field(1, "bad_request") + field(2, "no command"))
            return
        self._stream.send(frame(STARTED, field(1, 4242)))
        stdin = bool(flags and struct.unpack("<Q", flags)[0] & 2)
        program = argv[0].rpartition("/")[2]
        if program == "cat" and len(argv) == 1 and stdin:
            self._running = self._echoing = True
            return
        status = 0
        if program == "echo":
            self._stream.send(frame(STDOUT, " ".join(argv[1:]).encode() + b"\n"))
        elif program == "sleep":
            self._running = True
            return
        elif program == "sh" and (found := re.fullmatch(r"exit (\d{1,3})", argv[-1])):
            status = int(found[1])
        self._answer(EXIT, field(1, status))

    def _feed(self, kind: int, payload: bytes) -> None:
        if kind == SIGNAL:
            self._answer(EXIT, field(2, struct.unpack("<Q", dict(fields(payload))[1])[0]))
        elif kind == STDIN and self._echoing:
            if not payload:
                self._answer(EXIT, field(1, 0))
                return
            self._stream.send(frame(STDOUT, payload) + frame(WINDOW, field(1, len(payload))))
