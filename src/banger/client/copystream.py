"""One copy's connection to a guest's agent: the request, the archive's bytes in frames, how it ended.

Used by client/copy*.py only. Each wait for the guest has a deadline; what comes from it is bounded by the
protocol and by fixed buffers. Closing it in the middle makes the agent remove what it has begun.
No wait sleeps longer than SLICE_S: a signal just before a system call does not end that call, and its
handler runs when the call returns.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable
from typing import NoReturn

from banger.client.agentconnection import AgentConnection
from banger.client.errors import GuestUnreachable
from banger.client.streams import Output, hang_up
from banger.errors import BangerError, ErrorCode
from banger.guest import wire

FEATURE = "copy"
REPLACE_FEATURE = "copy-replace"
START_TIMEOUT_S = 60.0
STALL_TIMEOUT_S = 120.0
"""Nothing read and nothing taken for so long: a guest that writes to a slow disk still does something."""
SLICE_S = 1.0
BUFFER = 2 * wire.WIRE_MAX_COPY_PAYLOAD
MAX_NOTES = 32
_ENOENT, _ENOSPC, _EDQUOT = 2, 28, 122

Tick = Callable[[int], None]
"""Called with the bytes so far, often."""


class CopyStream:
    """begin(), then either fill() and take what is in `buffer`, or send() and finish(). A context manager."""

    def __init__(self, connection: AgentConnection, *, tick: Tick | None = None) -> None:
        self.bytes = 0
        self.notes: list[str] = []
        self.buffer = bytearray(BUFFER)
        self.view = memoryview(self.buffer)
        self.start = self.end = 0
        self.entries = 0
        self._socket = connection.socket
        self._early = connection.early
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._left = 0
        self._ended = False
        self._tick = tick

    def __enter__(self) -> CopyStream:
        return self

    def __exit__(self, _kind: object, failure: BaseException | None, _trace: object) -> None:
        if failure is None:
            self._socket.close()
        else:
            hang_up(self._socket)
        if isinstance(failure, wire.WireError):
            raise GuestUnreachable("the guest's agent speaks nonsense", details=str(failure)) from failure

    def begin(
        self, request: int, path: bytes, *, name: bytes = b"", flags: int = 0, feature: str = FEATURE
    ) -> int:
        """Send the request; the mode of what is copied out. Errors are the agent's own, by their path."""
        fields: list[tuple[int, bytes | str | int]] = [
            (wire.COPY_PATH, path),
            (wire.COPY_NAME, name),
            (wire.COPY_FLAGS, flags),
        ]
        self._send_all(memoryview(wire.encode_frame(request, wire.encode_fields(fields))))
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            kind, payload = self._read_frame(deadline)
            if kind == wire.FRAME_COPY_STARTED:
                return wire.Fields(payload).number(wire.COPY_STARTED_MODE)
            if (
                kind == wire.FRAME_HELLO
                and feature not in wire.Fields(payload).text(wire.HELLO_FEATURES).split()
            ):
                raise BangerError(
                    ErrorCode.GUEST_ERROR,
                    "this guest's agent is older than " + ("copies" if feature == FEATURE else "this"),
                    hint="banger vm restart gives it a new one",
                )

    # our own streams

    def wait_for_source(self, descriptor: int) -> None:
        """Until it can be read, however long that is. The agent's error and its end are heard meanwhile."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        while True:
            ready = dict(poll.poll(0 if self._early else 1000 * SLICE_S))
            if descriptor in ready:
                return
            if ready or self._early:
                self._read_frame(time.monotonic() + STALL_TIMEOUT_S)

    @staticmethod
    def write_all(output: Output, data: memoryview) -> None:
        """However long the reader takes. Raises BrokenPipeError when there is none, and NO_SPACE."""
        output.queue += data
        poll = select.poll()
        poll.register(output.fd, select.POLLOUT)
        while output.queue:
            if poll.poll(1000 * SLICE_S) and not output.write():
                raise BrokenPipeError(errno.EPIPE, "nobody reads what is copied")

    # coming

    def fill(self, wanted: int) -> bool:
        """`wanted` bytes (up to half of BUFFER) from `start` on, or more; False: the stream ends before."""
        if self.start and self.start + wanted > BUFFER - wire.WIRE_MAX_COPY_PAYLOAD // 2:
            held = self.end - self.start
            self.buffer[:held] = self.buffer[self.start : self.end]
            self.start, self.end = 0, held
        while self.end - self.start < wanted:
            if self.start == self.end:
                self.start = self.end = 0
            if not self._left and not self._next_data():
                return False
            room = min(BUFFER - self.end, self._left)
            got = self._receive(self.view[self.end : self.end + room], time.monotonic() + STALL_TIMEOUT_S)
            self.end += got
            self._left -= got
        return True

    def finish_reading(self) -> None:
        """All of the archive has been used: up to the agent's word that this was it."""
        while not self._ended:
            self.start = self.end = 0
            if not self.fill(1):
                return

    def _next_data(self) -> bool:
        while not self._ended:
            kind, length = self._read_header(time.monotonic() + STALL_TIMEOUT_S)
            if kind == wire.FRAME_COPY_DATA:
                if length > wire.WIRE_MAX_COPY_PAYLOAD:
                    raise wire.WireError("a frame that is too long")
                self._left = length
                self._moved(length)
                if length:
                    return True
                continue
            payload = self._read_payload(kind, length, time.monotonic() + STALL_TIMEOUT_S)
            if kind == wire.FRAME_COPY_END:
                self._ended = True
                self.entries = wire.Fields(payload).number(wire.COPY_DONE_ENTRIES)
            else:
                self._take(kind, payload)
        return False

    # going

    def send(self, piece: bytes | memoryview) -> None:
        """Up to WIRE_MAX_COPY_PAYLOAD bytes as one frame."""
        self._hear()
        self._send_all(memoryview(self._header(wire.FRAME_COPY_DATA, len(piece)) + piece))
        self._moved(len(piece))

    def send_file(self, descriptor: int, offset: int, length: int) -> bool:
        """A piece of a file, by the kernel; False when it is shorter: the copy is broken then."""
        end = offset + length
        while offset < end:
            piece = min(wire.WIRE_MAX_COPY_PAYLOAD, end - offset)
            self._hear()
            self._send_all(memoryview(self._header(wire.FRAME_COPY_DATA, piece)))
            self._moved(piece)
            stop = offset + piece
            while offset < stop:
                try:
                    sent = os.sendfile(self._socket.fileno(), descriptor, offset, stop - offset)
                except BlockingIOError:
                    self._wait_to_send()
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    self._broken()
                if not sent:
                    return False
                offset += sent
        return True

    def finish(self) -> None:
        """END, and the agent's word that all is in its place."""
        self._send_all(memoryview(self._header(wire.FRAME_COPY_END, 0)))
        deadline = time.monotonic() + STALL_TIMEOUT_S
        while True:
            kind, payload = self._read_frame(deadline)
            if kind == wire.FRAME_OK:
                self.entries = wire.Fields(payload).number(wire.COPY_DONE_ENTRIES)
                return

    # frames

    @staticmethod
    def _header(kind: int, length: int) -> bytes:
        return length.to_bytes(4, "little") + bytes((kind,))

    def _moved(self, count: int) -> None:
        self.bytes += count
        if self._tick is not None:
            self._tick(self.bytes)

    def _take(self, kind: int, payload: bytes) -> None:
        """Any frame that may come at any time."""
        if kind == wire.FRAME_ERROR:
            fields = wire.Fields(payload)
            number = fields.number(wire.ERROR_ERRNO)
            code = fields.text(wire.ERROR_CODE)
            known = ErrorCode.GUEST_ERROR
            if number in (_ENOSPC, _EDQUOT):
                known = ErrorCode.NO_SPACE
            elif number == _ENOENT or code == "not_found":
                known = ErrorCode.NOT_FOUND
            message = fields.text(wire.ERROR_MESSAGE) or code
            raise BangerError(known, f"in the guest: {message}", data={"agent_code": code})
        if kind == wire.FRAME_COPY_NOTE and len(self.notes) < MAX_NOTES:
            self.notes.append(wire.Fields(payload).text(wire.COPY_NOTE_MESSAGE))

    def _read_frame(self, deadline: float) -> tuple[int, bytes]:
        kind, length = self._read_header(deadline)
        payload = self._read_payload(kind, length, deadline)
        self._take(kind, payload)
        return kind, payload

    def _read_header(self, deadline: float) -> tuple[int, int]:
        header = self._exactly(wire.WIRE_HEADER_BYTES, deadline)
        return header[4], int.from_bytes(header[:4], "little")

    def _read_payload(self, kind: int, length: int, deadline: float) -> bytes:
        if length > wire.frame_limit(kind):
            raise wire.WireError(f"a frame of type {kind:#x} announces {length} bytes")
        return self._exactly(length, deadline)

    def _exactly(self, length: int, deadline: float) -> bytes:
        data = bytearray(length)
        view = memoryview(data)
        at = 0
        while at < length:
            at += self._receive(view[at:], deadline)
        return bytes(data)

    # the socket

    def _receive(self, into: memoryview, deadline: float) -> int:
        if self._early:
            count = min(len(into), len(self._early))
            into[:count] = self._early[:count]
            self._early = self._early[count:]
            return count
        while True:
            try:
                got = self._socket.recv_into(into)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
                continue
            except ConnectionError as error:
                raise _lost(str(error)) from error
            if not got:
                raise _lost("closed")
            return got

    def _wait(self, events: int, deadline: float) -> int:
        self._poll.register(self._socket, events)
        while True:
            rest = deadline - time.monotonic()
            if ready := self._poll.poll(1000 * min(SLICE_S, max(0.0, rest))):
                return ready[0][1]
            if rest <= 0:
                raise GuestUnreachable("the guest stands still: the copy was given up")

    def _wait_to_send(self) -> None:
        if self._wait(select.POLLIN | select.POLLOUT, time.monotonic() + STALL_TIMEOUT_S) & select.POLLIN:
            self._read_frame(time.monotonic() + STALL_TIMEOUT_S)

    def _hear(self) -> None:
        """What the agent says while we send: an error is heard before the rest is sent for nothing."""
        self._poll.register(self._socket, select.POLLIN)
        if self._early or self._poll.poll(0):
            self._read_frame(time.monotonic() + STALL_TIMEOUT_S)

    def _send_all(self, view: memoryview) -> None:
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                self._wait_to_send()
            except (BrokenPipeError, ConnectionResetError):
                self._broken()

    def _broken(self) -> NoReturn:
        """The agent reads no more: its reason may still be there to be read."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self._read_frame(deadline)


def _lost(why: str) -> GuestUnreachable:
    return GuestUnreachable(
        "the connection to the guest broke before the copy ended",
        details=why,
        hint="`banger vm list` shows whether the VM still runs",
    )
