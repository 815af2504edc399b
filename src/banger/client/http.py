"""A small HTTP/1.1 client over a Unix socket: one request at a time, content-length or chunked replies.

Only the standard library's socket and json: importing http.client costs more than the call (DESIGN.md).
The daemon is the same user's, yet everything read is bounded. After a crash of either end: an OSError or
HTTPError here, and nothing left behind.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

MAX_HEAD = 64 << 10
MAX_BODY = 64 << 20
MAX_LINE = 4 << 20
CHUNK = 64 << 10


class HTTPError(Exception):
    """The other end does not speak HTTP as we know it, or went away in the middle."""


def connect_unix(path: str, timeout_s: float | None = None) -> socket.socket:
    """A connection to the socket at `path`, which may be longer than the 107 bytes of a socket address."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        if len(os.fsencode(path)) <= 107:
            connection.connect(path)
            return connection
        folder, name = os.path.split(path)
        folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{folder_fd}/{name}")
        finally:
            os.close(folder_fd)
        return connection
    except BaseException:
        connection.close()
        raise


class Response:
    """A reply whose body has not been read yet. Header names are in lower case."""

    def __init__(self, connection: Connection, status: int, headers: dict[str, str]) -> None:
        self.status: int = status
        self.headers: dict[str, str] = headers
        self._connection = connection
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        length = headers.get("content-length", "")
        if length and not (length.isascii() and length.isdigit()):
            raise HTTPError(f"content-length {length[:40]!a}")
        self._left = int(length) if length else None
        if status in (101, 204, 304):
            self._chunked, self._left = False, 0

    def read(self) -> bytes:
        """The whole body."""
        parts: list[bytes] = []
        size = 0
        for part in self.chunks():
            size += len(part)
            if size > MAX_BODY:
                raise HTTPError("the reply is too long")
            parts.append(part)
        return b"".join(parts)

    def chunks(self) -> Iterator[bytes]:
        """The body in the pieces that it arrives in."""
        source = self._connection
        if self._chunked:
            while True:
                size = _chunk_size(source.read_line())
                if size == 0:
                    while source.read_line():
                        pass  # trailers
                    break
                while size:
                    part = source.read_some(size)
                    if not part:
                        raise HTTPError("the daemon went away")
                    size -= len(part)
                    yield part
                if source.read_line():
                    raise HTTPError("a chunk does not end where it says")
        elif self._left is not None:
            while self._left:
                part = source.read_some(self._left)
                if not part:
                    raise HTTPError("the daemon went away")
                self._left -= len(part)
                yield part
        else:
            source.reusable = False
            while part := source.read_some(CHUNK):
                yield part
        source.idle = True
        if self.headers.get("connection", "").lower() == "close":
            source.reusable = False

    def lines(self) -> Iterator[bytes]:
        """The body's lines without their ends, as they arrive."""
        pending = b""
        for part in self.chunks():
            pending += part
            *lines, pending = pending.split(b"\n")
            yield from lines
            if len(pending) > MAX_LINE:
                raise HTTPError("a line of the reply is too long")
        if pending:
            yield pending


class Connection:
    """One connection; `reusable` and `idle` say whether the next request may use it."""

    def __init__(self, path: str, timeout_s: float | None) -> None:
        self.socket: socket.socket = connect_unix(path, timeout_s)
        self.reusable: bool = True
        self.idle: bool = True
        self._buffer = b""

    def request(
        self, method: str, target: str, *, headers: dict[str, str], body: bytes | None = None
    ) -> Response:
        """Send it, read the reply's head."""
        lines = [f"{method} {target} HTTP/1.1", "Host: banger"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        self.idle = False
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        return self._read_head()

    def _read_head(self) -> Response:
        parts = self.read_line().split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise HTTPError("this is no HTTP")
        headers: dict[str, str] = {}
        size = 0
        while line := self.read_line():
            size += len(line)
            name, colon, value = line.partition(":")
            if not colon or size > MAX_HEAD:
                raise HTTPError("the reply's head is broken or too long")
            headers[name.strip().lower()] = value.strip()
        return Response(self, int(parts[1]), headers)

    def read_line(self) -> str:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_HEAD:
                raise HTTPError("the reply's head is too long")
            data = self.socket.recv(CHUNK)
            if not data:
                raise HTTPError("the daemon went away")
            self._buffer += data
        line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        return line.rstrip(b"\r").decode("latin-1")

    def read_some(self, limit: int) -> bytes:
        """At most `limit` bytes; b"" at the end of the stream."""
        if not self._buffer:
            return self.socket.recv(min(limit, CHUNK))
        part, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return part

    def take_socket(self) -> tuple[socket.socket, bytes]:
        """After a 101: the socket is the caller's, and what was read too far."""
        self.reusable = False
        rest, self._buffer = self._buffer, b""
        return self.socket, rest

    def is_fresh(self) -> bool:
        """Whether an idle connection is still one: nothing to read, and not closed by the other end."""
        self.socket.setblocking(False)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        self.reusable = False
        self.socket.close()


def _chunk_size(line: str) -> int:
    digits = line.partition(";")[0].strip()
    if not digits or len(digits) > 8 or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
        raise HTTPError(f"chunk size {digits[:20]!a}")
    return int(digits, 16)
