"""Making a VM with progress, and leaving nothing of it when the user changes their mind.

Ctrl-C, SIGTERM and SIGHUP during a boot delete what was made so far; more of them change nothing. A CLI that
is killed outright leaves that to the daemon where the VM has auto_remove.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from banger.cli.escape import safe
from banger.cli.progress import Progress
from banger.client.client import Client, Operation
from banger.client.errors import DaemonUnreachable
from banger.client.http import Connection
from banger.errors import BangerError, ErrorCode

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal that ends the command. status: what to exit with."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def _interrupt(number: int, _frame: FrameType | None) -> None:
    for one in ENDING:
        signal.signal(one, _impatient)
    raise Interrupted(number)


def _impatient(_number: int, _frame: FrameType | None) -> None:
    """More of them change nothing, neither what is still to be undone nor the exit status."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Signals that end a command raise Interrupted in here: the first, and from then on the command ends."""
    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    interrupted = False
    try:
        yield
    except Interrupted:
        interrupted = True
        raise
    finally:
        for number, handler in before.items():
            if not interrupted:
                signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that end a command change nothing in here: what is under way has to be finished."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Lease:
    """Our hold on a VM with auto_remove; taken again when the daemon is replaced or restarted."""

    def __init__(self, client: Client, vm_id: str) -> None:
        self._client = client
        self._vm_id = vm_id
        self._connection: Connection | None = client.lease(vm_id)
        self._next_try = 0.0

    @property
    def fd(self) -> int:
        return self._connection.socket.fileno() if self._connection is not None else -1

    def readable(self) -> None:
        """The daemon spoke, or went: then tick() takes the lease again."""
        if self._connection is None:
            return
        try:
            gone = not self._connection.socket.recv(4096)
        except OSError:
            gone = True
        if gone:
            self.close()

    def tick(self) -> None:
        """Once a second while we have no lease: ask whatever daemon there is by now; start none."""
        if self._connection is not None or time.monotonic() < self._next_try:
            return
        self._next_try = time.monotonic() + 1.0
        try:
            with Client(self._client.paths, autostart=False, version="") as quiet:
                self._connection = quiet.lease(self._vm_id)
        except BangerError:
            pass  # no daemon yet, or the VM is gone: the command's own end will say so

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def owned(fields: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The fields of a new VM with whose it is: what its /root gets of the user's, the daemon cannot know."""
    from banger.local.gitidentity import request_owner

    owner, notes = request_owner()
    for note in notes:
        progress.line(f"warning: {safe(note)}", always=True)
    return {**fields, "owner": owner}


def boot(client: Client, fields: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Create (and start) a VM; the VM. Interrupted and every error leave nothing behind but an `error` VM."""
    operation: Operation | None = None
    with interruptible():
        try:
            client.info()  # a daemon that has to be started is started here, where a signal may end it
            with _held_back():
                # between the request and its answer we would not know what to undo
                operation = client.create_vm(**fields)
            return operation.wait(progress)
        except Interrupted:
            with uninterrupted():
                progress.line("interrupted: removing the VM")
                if operation is not None:
                    undo(client, operation, progress)
            raise
        except DaemonUnreachable:
            raise
        except BangerError:
            # a failed start leaves a VM in state error, to be looked at; one with auto_remove is of no use
            if operation is not None and operation.vm_id and fields.get("auto_remove"):
                with uninterrupted():
                    delete(client, operation.vm_id)
            raise


@contextmanager
def _held_back() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(ENDING))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def undo(client: Client, operation: Operation, progress: Progress) -> None:
    """End the creation, and delete what it made. Deleting aborts a start that is under way."""
    if not operation.vm_id:
        operation.cancel()
        try:
            operation.wait(progress)
        except BangerError:
            pass  # aborted, as it should be; or failed by itself just then
    if operation.vm_id:
        delete(client, operation.vm_id)


def delete(client: Client, vm_id: str) -> None:
    """Delete it; one that is gone already is what we wanted."""
    try:
        with Progress() as progress:
            client.delete_vm(vm_id).wait(progress.of_work)
    except BangerError as error:
        if error.code is not ErrorCode.NOT_FOUND:
            raise
