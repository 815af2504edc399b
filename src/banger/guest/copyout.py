"""A file or folder of a guest's as a tar in a file of ours, by the agent's copy (ARCHITECTURE, "Copies").

Used by the workspace room, in the daemon. What comes is written as it is: whoever reads the tar must not
trust it. Bounded in bytes, by the room on the host's disk, and in silence; how long a guest may drip is the
caller's to bound. Closing in the middle makes the agent stop; what was written is the caller's to remove.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
from dataclasses import dataclass
from typing import BinaryIO, Final

from banger.errors import BangerError, ErrorCode
from banger.guest import wire
from banger.guest.connection import FrameStream
from banger.guest.copying import copying
from banger.guest.wire import Fields, WireError
from banger.system.diskroom import DiskRoom
from banger.system.threads import in_thread

FEATURE: Final = "copy"
START_TIMEOUT_S: Final = 60.0
STALL_TIMEOUT_S: Final = 120.0
MAX_NOTES: Final = 32
_PIECE: Final = 4 << 20
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class CopiedOut:
    """bytes: of the tar. entries: as the agent counts them. notes: what it left out, printable."""

    bytes: int
    entries: int
    notes: tuple[str, ...]


async def copy_out(vm_dir: str, guest_path: str, out: BinaryIO, *, most_bytes: int) -> CopiedOut:
    """Write the tar of guest_path (absolute; its top is called ".") to `out`, an unbuffered or buffered file.

    NOT_FOUND where there is no such path; GUEST_ERROR where the agent fails or sends more than most_bytes;
    NO_SPACE; GuestUnreachable and GuestTimeout.
    """
    return await _copy_out(vm_dir, guest_path, out, most_bytes, DiskRoom(out.fileno()))


async def copy_out_memory(vm_dir: str, guest_path: str, *, most_bytes: int) -> io.BytesIO:
    """As copy_out, for what is small: the tar is nowhere but in memory, and at its beginning."""
    out = io.BytesIO()
    await _copy_out(vm_dir, guest_path, out, most_bytes, None)
    out.seek(0)
    return out


async def _copy_out(
    vm_dir: str, guest_path: str, out: BinaryIO, most_bytes: int, room: DiskRoom | None
) -> CopiedOut:
    path = os.fsencode(guest_path)
    if not path.startswith(b"/") or b"\0" in path or len(path) > 4000:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"no path in a guest: {guest_path[:200]!a}")
    async with copying(vm_dir, FEATURE, stall_s=STALL_TIMEOUT_S) as stream:
        return await _Copy(stream, out, most_bytes, room).run(path)


class _Copy:
    def __init__(self, stream: FrameStream, out: BinaryIO, most_bytes: int, room: DiskRoom | None) -> None:
        self._stream = stream
        self._out = out
        self._left = most_bytes
        self._most = most_bytes
        self._held = bytearray()
        self._bytes = 0
        self._room = room
        self._started = False
        self._notes: list[str] = []

    async def run(self, path: bytes) -> CopiedOut:
        request = wire.encode_fields([(wire.COPY_PATH, path), (wire.COPY_FLAGS, 0)])
        async with asyncio.timeout(START_TIMEOUT_S):
            await self._stream.write(wire.encode_frame(wire.FRAME_COPY_OUT, request))
            kind, payload = await self._frame()
        if kind != wire.FRAME_COPY_STARTED:
            raise WireError("the agent does not begin the copy")
        Fields(payload).number(wire.COPY_STARTED_MODE)
        self._started = True
        while True:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                kind, payload = await self._frame()
            if kind == wire.FRAME_COPY_DATA:
                await self._take(payload)
            elif kind == wire.FRAME_COPY_END:
                await self._flush()
                entries = Fields(payload).number(wire.COPY_DONE_ENTRIES)
                return CopiedOut(self._bytes, entries, tuple(self._notes))

    async def _frame(self) -> tuple[int, bytes]:
        """The next frame that is no note. What the agent fails with is raised."""
        while True:
            header = await self._stream.reader.readexactly(wire.WIRE_HEADER_BYTES)
            length, kind = int.from_bytes(header[:4], "little"), header[4]
            most = wire.WIRE_MAX_COPY_PAYLOAD if kind == wire.FRAME_COPY_DATA else wire.frame_limit(kind)
            if length > most:
                raise WireError(f"a frame of type {kind:#x} announces {length} bytes")
            payload = await self._stream.reader.readexactly(length)
            if kind == wire.FRAME_ERROR:
                raise _failure(Fields(payload), started=self._started)
            if kind != wire.FRAME_COPY_NOTE:
                return kind, payload
            if len(self._notes) < MAX_NOTES:
                self._notes.append(Fields(payload).text(wire.COPY_NOTE_MESSAGE))

    async def _take(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise BangerError(
                ErrorCode.GUEST_ERROR,
                f"the guest sends more than {self._most >> 20} MiB: copying was given up",
            )
        self._held += data
        if len(self._held) >= _PIECE:
            await self._flush()

    async def _flush(self) -> None:
        held, self._held = self._held, bytearray()
        try:
            await in_thread(lambda: self._write(held))
        except OSError as error:
            code = ErrorCode.NO_SPACE if error.errno in _NO_ROOM else ErrorCode.HOST_UNSUITABLE
            raise BangerError(code, f"writing what the guest sends failed: {error.strerror}") from error

    def _write(self, held: bytearray) -> None:
        if self._room is not None:
            self._room.use(len(held))
        view = memoryview(held)
        while view:
            view = view[self._out.write(view) :]
        self._bytes += len(held)


def _failure(fields: Fields, *, started: bool) -> BangerError:
    """NOT_FOUND means that what was asked for is not there, not that a file went while it was copied."""
    number, agent_code = fields.number(wire.ERROR_ERRNO), fields.text(wire.ERROR_CODE, most=64)
    code = ErrorCode.GUEST_ERROR
    if number in _NO_ROOM:
        code = ErrorCode.NO_SPACE
    elif not started and (number == errno.ENOENT or agent_code == "not_found"):
        code = ErrorCode.NOT_FOUND
    message = fields.text(wire.ERROR_MESSAGE) or agent_code
    return BangerError(code, f"in the guest: {message}", data={"agent_code": agent_code})
