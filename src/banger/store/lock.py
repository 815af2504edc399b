"""The lock on the state folder: whoever has the database open holds STATE_DIR/lock for as long.

Only store/database.py uses it. The kernel lets go of a flock when its holder dies, so a crash leaves a
file with the pid of a process that is gone, and nothing that has to be cleaned.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from banger.errors import ErrorCode
from banger.store.errors import StoreError

LOCK_NAME = "lock"


class FolderLock:
    """An exclusive flock, taken at once or not at all."""

    def __init__(self, state_dir: str) -> None:
        """BUSY with the holder's pid in data when another process has it."""
        self.path = str(Path(state_dir) / LOCK_NAME)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._take(state_dir)
        except BaseException:
            self.release()
            raise

    def _take(self, state_dir: str) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            pid = int(text) if text.isascii() and text.isdigit() else 0
            raise StoreError(
                ErrorCode.BUSY,
                f"another banger daemon has the state folder {state_dir} open"
                + (f" (process {pid})" if pid else ""),
                hint="one daemon serves a state folder; BANGER_HOME gives another instance its own",
                data={"pid": pid},
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Idempotent. The file stays: removing it would let two processes lock two files of one name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
