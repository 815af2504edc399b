"""Single files of a guest's, from memory and into memory: for the SDK's `read_file` and `write_file`.

The same exchange with the agent as a copy (client/copy.py), with one entry in its archive. What is read is
bounded, and lies in a temporary folder meanwhile. A file appears whole or not at all. After a crash of ours
the agent removes what it has begun.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time

from banger.client import copytar
from banger.client.agentconnection import connect_agent
from banger.client.client import Client
from banger.client.copy import guest_path
from banger.client.copyextract import Extraction
from banger.client.copyfolders import Target
from banger.client.copystream import CopyStream
from banger.errors import BangerError, ErrorCode
from banger.guest import wire

PIECE = wire.WIRE_MAX_COPY_PAYLOAD
MAX_FILE_BYTES = 64 << 20
"""What read_file takes into memory unless it is told otherwise."""
ROOM_FOR_HEADERS = 4 << 20
"""What an archive of one file may have besides: its headers, and the map of a sparse one."""


def write_file(client: Client, reference: str, path: str, data: bytes, *, mode: int) -> None:
    """Root's, in a folder that is there. A file that is there is replaced."""
    head = copytar.Head(b".", copytar.FILE, mode & 0o7777, 0, 0, len(data), time.time_ns(), b"", 0, 0)
    with CopyStream(connect_agent(client, reference, purpose="cp")) as stream:
        stream.begin(wire.FRAME_COPY_IN, guest_path(path))
        stream.send(copytar.make_head(head))
        view = memoryview(data)
        for at in range(0, len(view), PIECE):
            stream.send(view[at : at + PIECE])
        stream.send(copytar.padding(len(data)) + copytar.END)
        stream.finish()


def read_file(client: Client, reference: str, path: str, *, most: int) -> bytes:
    """A link means what it points to. NOT_FOUND; INVALID_ARGUMENT for no file, or one longer than most."""

    def tick(count: int) -> None:
        if count > most + ROOM_FOR_HEADERS:
            raise _too_long(path, most)

    with tempfile.TemporaryDirectory(prefix="banger-") as folder:
        with CopyStream(connect_agent(client, reference, purpose="cp"), tick=tick) as stream:
            mode = stream.begin(wire.FRAME_COPY_OUT, guest_path(path), flags=wire.COPY_FLAG_FOLLOW)
            if not stat.S_ISREG(mode):
                raise BangerError(ErrorCode.INVALID_ARGUMENT, f"in the guest: {path[:200]!a} is no file")
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                Extraction(stream, Target(descriptor, b"file", path, False)).run()
            finally:
                os.close(descriptor)
        # nobody else can reach into this folder; but what is in it was chosen by the guest
        status = os.lstat(f"{folder}/file")
        if not stat.S_ISREG(status.st_mode):
            raise BangerError(ErrorCode.GUEST_ERROR, f"refused from the guest: no file for {path[:200]!a}")
        if status.st_size > most:
            raise _too_long(path, most)
        os.chmod(f"{folder}/file", 0o600)
        with open(f"{folder}/file", "rb") as taken:
            return taken.read()


def _too_long(path: str, most: int) -> BangerError:
    return BangerError(
        ErrorCode.INVALID_ARGUMENT,
        f"in the guest: {path[:200]!a} is longer than {most} bytes",
        hint="copy_out(…) has no limit, read_file(…, max_bytes=…) another one",
    )
