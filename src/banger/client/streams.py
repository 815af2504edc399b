"""Our own standard streams while a guest's command has them: written without ever blocking.

A descriptor is shared with whoever started us, so O_NONBLOCK must not be set on it. A pipe or a terminal
is opened once more, for a description of our own; a socket has a flag for it. Used by client/exchange.py
and client/copystream.py.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from contextlib import suppress

from banger.errors import BangerError, ErrorCode

PIPE_PIECE = 4096  # PIPE_BUF: what a pipe that polls writable takes without blocking (pipe(7))
PIECE = 64 << 10
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

HANG_UP_S = 1.0


def hang_up(connection: socket.socket) -> None:
    """Close in the middle so that the agent learns of it, within HANG_UP_S.

    A socket that is closed with bytes unread is a reset to its other end, and vhost-device-vsock (QEMU's
    bridge) does not pass a reset on: the command would stay in the guest for good. The end of what we send
    is passed on.
    """
    deadline = time.monotonic() + HANG_UP_S
    with connection, suppress(OSError):
        connection.settimeout(HANG_UP_S)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(PIECE) and time.monotonic() < deadline:
            pass


class Output:
    """What waits for the reader of one of our descriptors. close() leaves the descriptor open."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.queue = bytearray()
        self._own = -1
        self._socket: socket.socket | None = None
        self._piece = 0

    def write(self) -> bool:
        """As much of the queue as is taken at once; False when nobody reads any more. NO_SPACE."""
        try:
            if not self._piece:
                self._open()
            with memoryview(self.queue) as queue, queue[: self._piece] as piece:
                written = self._write(piece)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno in FULL:
                raise BangerError(ErrorCode.NO_SPACE, f"our output: {error.strerror}") from error
            return False  # closed by the other end, or never open
        del self.queue[:written]
        return True

    def close(self) -> None:
        if self._own >= 0:
            os.close(self._own)
            self._own = -1
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _write(self, piece: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._own if self._own >= 0 else self.fd, piece)

    def _open(self) -> None:
        mode = os.fstat(self.fd).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(self.fd))
            self._piece = PIECE
        elif stat.S_ISREG(mode):
            self._piece = 1 << 20
        elif stat.S_ISFIFO(mode) or os.isatty(self.fd):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            try:
                self._own = os.open(f"/proc/self/fd/{self.fd}", flags)
                self._piece = PIECE
            except OSError:  # another user's, or its reader has gone
                self._piece = PIPE_PIECE
        else:
            self._piece = PIPE_PIECE
