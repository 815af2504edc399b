"""banger's own known_hosts: the host key of each VM, under `NAME.vm` and its address.

Owned by the daemon; ssh only reads it. Every line of banger's ends in `banger:<vm id>` and lives as long as
its VM; other lines are left alone. A change is one rename under a lock, so that a reader or a crash meets
the old file or the new one; what a crash left out, `restore` puts right at the daemon's next start.
Blocking, for milliseconds: called in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from banger.errors import BangerError, ErrorCode

LOCK_TIMEOUT_S = 10.0
LOCK_RETRY_S = 0.01
_MARK = b"banger:"


class KnownHost(NamedTuple):
    """public_key: one line, `ssh-ed25519 AAAA… comment`, or "" when there is none yet."""

    vm_id: str
    name: str
    address: str
    public_key: str

    def line(self) -> bytes:
        kind, key = self.public_key.split()[:2]
        return f"{self.name}.vm,{self.address} {kind} {key} {_MARK.decode()}{self.vm_id}\n".encode()


def remember(path: str, host: KnownHost) -> None:
    """The VM's line, in place of an earlier one of its own or of a VM that had its name or address."""

    def change(lines: list[bytes]) -> list[bytes]:
        mine = {f"{host.name}.vm".encode(), host.address.encode()}
        return [line for line in lines if not _is_of(line, host.vm_id) and not _names(line) & mine] + [
            host.line()
        ]

    _edit(path, change)


def forget(path: str, vm_id: str) -> None:
    """No error when there is nothing of it."""
    _edit(path, lambda lines: [line for line in lines if not _is_of(line, vm_id)])


def restore(path: str, hosts: Iterable[KnownHost]) -> None:
    """Exactly these VMs' lines besides what is not banger's. VMs that have no key yet are left out."""
    ours = [host.line() for host in hosts if host.public_key]
    _edit(path, lambda lines: [line for line in lines if not _mark(line)] + ours)


def _mark(line: bytes) -> bytes:
    """The VM id of a line of banger's, else nothing."""
    fields = line.split()
    is_ours = len(fields) == 4 and not line.startswith(b"#") and fields[3].startswith(_MARK)
    return fields[3][len(_MARK) :] if is_ours else b""


def _is_of(line: bytes, vm_id: str) -> bool:
    return _mark(line) == vm_id.encode()


def _names(line: bytes) -> set[bytes]:
    return set(line.split()[0].split(b",")) if _mark(line) else set()


def _edit(path: str, change: Callable[[list[bytes]], list[bytes]]) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with _locked(f"{os.path.dirname(path)}/.lock-{os.path.basename(path)}"):
        try:
            with open(path, "rb") as file:
                before = file.read()
        except FileNotFoundError:
            before = b""
        lines = before.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines[-1] += b"\n"
        after = b"".join(change(lines))
        if after in (before, b"".join(lines)):
            return
        temporary = f"{path}.new"
        # no fsync: what a power cut takes, the next daemon restores
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(after)
        os.replace(temporary, path)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """flock knows no deadline, so it is tried again while another thread has it, for milliseconds."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BangerError(ErrorCode.BUSY, f"{path} is held by another process") from None
                time.sleep(LOCK_RETRY_S)
        yield
    finally:
        os.close(fd)
