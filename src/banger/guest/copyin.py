"""A tar of ours unpacked in a folder of the guest's, by the agent's copy (ARCHITECTURE, "Copies").

Used by the workspace room, in the daemon: no program of the guest's is needed for it. Each wait has a
deadline. What a broken copy began, the agent removes.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import BinaryIO, Final

from banger.guest import wire
from banger.guest.connection import FrameStream
from banger.guest.copying import copying
from banger.guest.stream import refusal
from banger.guest.wire import WireError
from banger.system.threads import in_thread

FEATURE: Final = "copy-replace"
STALL_TIMEOUT_S: Final = 60.0
_PIECE: Final = wire.WIRE_MAX_PAYLOAD


async def copy_in(vm_dir: str, folder: str, archive: BinaryIO, *, replace: bool = False) -> None:
    """Unpack a tar, from where the file is, into a folder (absolute) that is there. All is root's.

    replace: a folder of the archive takes the place of what has its name, which is removed. AgentRefused with
    the agent's code and errno; GUEST_ERROR for an agent without copies; GuestUnreachable and GuestTimeout.
    """
    flags = wire.COPY_FLAG_ARCHIVE | (wire.COPY_FLAG_REPLACE if replace else 0)
    request = wire.encode_fields([(wire.COPY_PATH, os.fsencode(folder)), (wire.COPY_FLAGS, flags)])
    async with copying(vm_dir, FEATURE, stall_s=STALL_TIMEOUT_S) as stream:
        await _send(stream, wire.FRAME_COPY_IN, request)
        await _until(stream, wire.FRAME_COPY_STARTED)
        await _pieces(stream, archive)
        await _until(stream, wire.FRAME_OK)


async def _pieces(stream: FrameStream, archive: BinaryIO) -> None:
    try:
        while piece := await in_thread(partial(archive.read, _PIECE)):
            await _send(stream, wire.FRAME_COPY_DATA, piece)
        await _send(stream, wire.FRAME_COPY_END, b"")
    except ConnectionError:
        return  # the agent has given up, and said why


async def _send(stream: FrameStream, kind: int, payload: bytes) -> None:
    async with asyncio.timeout(STALL_TIMEOUT_S):
        await stream.write(wire.encode_frame(kind, payload))


async def _until(stream: FrameStream, wanted: int) -> None:
    """Up to that frame. What the agent fails with is raised."""
    while True:
        async with asyncio.timeout(STALL_TIMEOUT_S):
            frame = await stream.read()
        if frame is None:
            raise WireError("the agent ends the copy without a word")
        if frame.type == wire.FRAME_ERROR:
            raise refusal(frame.payload)
        if frame.type == wanted:
            return
        if frame.type != wire.FRAME_COPY_NOTE:
            raise WireError("the agent does not go on with the copy")
