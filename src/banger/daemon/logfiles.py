"""Reading and following a VM's log files. They hold what a guest or a monitor wrote: bytes, never trusted."""

# pathlib knows no descriptors

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator

from banger.errors import BangerError, ErrorCode

CHUNK = 64 << 10
POLL_S = 0.25
"""Between two looks at a followed file that has not grown (there is no portable push for files here)."""


class LogFile:
    """An open log and how far it was read."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def open(cls, path: str, tail: int = -1) -> LogFile:
        """Blocking. tail: only the last so many lines; -1 is all. NOT_FOUND where there is no log yet."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            brief = (
                "there is no log yet" if isinstance(error, FileNotFoundError) else "the log cannot be read"
            )
            raise BangerError(ErrorCode.NOT_FOUND, f"{brief}: {path}", details=str(error)) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise BangerError(ErrorCode.NOT_FOUND, f"the log is no regular file: {path}")
        file = cls(path, fd)
        if tail >= 0:
            os.lseek(fd, _tail_offset(fd, tail), os.SEEK_SET)
        else:
            _skip_hole(fd)
        return file

    def read(self) -> bytes:
        """Blocking. What is next, b"" at the end; starts again where the file was cut or rotated."""
        data = os.read(self._fd, CHUNK)
        if data:
            return data
        if os.fstat(self._fd).st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
            os.lseek(self._fd, 0, os.SEEK_SET)
            return os.read(self._fd, CHUNK)
        return b""

    def replaced(self) -> bool | None:
        """Blocking. True when another file has the name by now, None when none has."""
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return None
        return not os.path.samestat(named, os.fstat(self._fd))

    def reopen(self) -> None:
        new = LogFile.open(self.path)
        os.close(self._fd)
        self._fd = new._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _skip_hole(fd: int) -> None:
    """The head of a long log may have been given back (system/logcap): begin with the first line after."""
    try:
        if os.lseek(fd, 0, os.SEEK_DATA) == 0:
            return
    except OSError:  # ENXIO: nothing but a hole; else the file system knows no holes
        os.lseek(fd, 0, os.SEEK_SET)
        return
    head = os.read(fd, CHUNK)
    os.lseek(fd, head.find(b"\n") + 1 - len(head), os.SEEK_CUR)


def _tail_offset(fd: int, lines: int) -> int:
    end = os.fstat(fd).st_size
    if lines == 0:
        return end
    position = end
    newlines = 0
    while position > 0:
        size = min(CHUNK, position)
        position -= size
        block = os.pread(fd, size, position)
        if position + size == end and block.endswith(b"\n"):
            newlines -= 1  # the last line's own end
        at = len(block)
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            newlines += 1
            if newlines >= lines:
                return position + at + 1
    return 0


async def chunks(file: LogFile, *, follow: bool, stopping: asyncio.Event) -> AsyncIterator[bytes]:
    """The file's bytes; with follow also what comes, until the file's name or the daemon goes."""
    nameless = False
    while True:
        data = await asyncio.to_thread(file.read)
        if data:
            yield data
            continue
        if not follow or stopping.is_set():
            return
        replaced = await asyncio.to_thread(file.replaced)
        if replaced:
            await asyncio.to_thread(file.reopen)
            continue
        if replaced is None and nameless:
            return
        nameless = replaced is None  # while it is rotated it has no name for an instant
        try:
            async with asyncio.timeout(POLL_S):
                await stopping.wait()
        except TimeoutError:
            pass
