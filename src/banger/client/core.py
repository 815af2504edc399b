"""What the SDK's objects of one instance share: connections, leases, defaults, and how a VM is made.

Behind client/sdk.py, client/vm.py and client/session.py; the asynchronous twins call those in threads. Closed
when the last object that uses it is gone. Thread-safe. After a crash the daemon deletes what was leased.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from banger.client.calls import CallClient, Calls, held
from banger.client.client import Operation
from banger.client.errors import DaemonUnreachable
from banger.client.leases import Leases
from banger.client.values import Credentials, OnProgress, progress_of
from banger.config.paths import Paths
from banger.errors import BangerError, ErrorCode
from banger.model.names import name_fault
from banger.model.published import PortSpec, parse_published
from banger.model.sizes import check_vcpu_count, parse_disk_size, parse_memory_mib

if TYPE_CHECKING:
    from banger.client import shapes

Fields = dict[str, Any]


class Core:
    """One instance of banger's, as seen by one process."""

    def __init__(
        self,
        paths: Paths,
        *,
        autostart: bool,
        credentials: Credentials | None,
        progress: OnProgress | None,
    ) -> None:
        self.calls: Calls = Calls(paths, autostart=autostart)
        self.leases: Leases = Leases(paths)
        self._credentials = credentials
        self._progress = progress
        self.close: Callable[[], object] = weakref.finalize(self, _close, self.calls, self.leases)

    def operate(
        self, begin: Callable[[CallClient], Operation], progress: OnProgress | None
    ) -> dict[str, Any]:
        """A long piece of work to its end: its result. It goes on in the daemon when we are ended."""
        with self.calls.client() as client:
            return self._wait(begin(client), progress)

    def _wait(self, operation: Operation, progress: OnProgress | None) -> dict[str, Any]:
        tell = progress or self._progress

        def on_event(event: shapes.Event) -> None:
            if tell is not None and (said := progress_of(event)) is not None:
                tell(said)

        return operation.wait(on_event)

    # making a VM

    def make(self, fields: Fields, progress: OnProgress | None, *, leased: bool) -> shapes.VM:
        """The VM, made and unless start is false booted; its image is pulled where it is not here.

        Nothing is left when this is interrupted; a failed start leaves a VM in state error, unless leased.
        """
        try:
            return self._boot(fields, progress, leased=leased)
        except BangerError as error:
            # the daemon pulls what the catalog has, but knows no login
            wants_login = error.code is ErrorCode.PERMISSION_DENIED
            if not (wants_login or error.code is ErrorCode.NOT_FOUND) or not error.data.get("image"):
                raise
        image = self.pull_image({"reference": fields["image"]}, progress)
        return self._boot({**fields, "image": image["id"]}, progress, leased=leased)

    def _boot(self, fields: Fields, progress: OnProgress | None, *, leased: bool) -> shapes.VM:
        with self.calls.client() as client:
            client.info()  # a daemon that has to be started is started here, where we may be interrupted
            operation: Operation | None = None
            try:
                # between the request and its answer we would not know what to undo
                with held(), _signals_held_back():
                    operation = client.create_vm(**fields)
                vm = cast("shapes.VM", self._wait(operation, progress))
                if leased:
                    self.leases.hold(client, vm["id"])
                return vm
            except DaemonUnreachable:
                raise
            except BangerError:
                if leased and operation is not None and operation.vm_id:
                    with held():
                        self.delete(operation.vm_id)
                raise
            except BaseException:
                if operation is not None:
                    with held():
                        self._undo(operation)
                raise

    def _undo(self, operation: Operation) -> None:
        """End the creation, and delete what it made. Deleting aborts a start that is under way."""
        if not operation.vm_id:
            operation.cancel()
            try:
                operation.wait()
            except BangerError:
                pass  # aborted, as it should be; or failed by itself just then
        if operation.vm_id:
            self.delete(operation.vm_id)

    def delete(self, vm_id: str, progress: OnProgress | None = None, *, discard_work: bool = False) -> None:
        """One that is gone already is what we wanted."""
        try:
            self.operate(lambda client: client.delete_vm(vm_id, discard_work=discard_work), progress)
        except BangerError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                raise
        self.leases.release(vm_id)

    # images

    def pull_image(self, fields: Fields, progress: OnProgress | None) -> shapes.Image:
        body = {key: value for key, value in fields.items() if value}
        if self._credentials is not None and body.get("reference") and not body.get("file"):
            logins = {host: dict(login) for host, login in self._credentials(body["reference"]).items()}
            if logins:
                body["credentials"] = logins
        with self.calls.client() as client:
            client.info()
            operation: Operation | None = None
            try:
                with held(), _signals_held_back():
                    operation = client.pull_image(**body)
                return cast("shapes.Image", self._wait(operation, progress))
            except Exception:
                raise
            except BaseException:
                if operation is not None:  # what was brought stays in the cache
                    with held():
                        operation.cancel()
                raise


def _close(calls: Calls, leases: Leases) -> None:
    leases.close()
    calls.close()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """From the main thread, whose Ctrl-C would otherwise come in the middle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def spec_fields(
    *,
    vcpu: int | None = None,
    memory: int | str | None = None,
    disk_size: int | str | None = None,
    nat: bool | None = None,
) -> Fields:
    """Of a request to make or change a VM; what was not said is left out. INVALID_ARGUMENT."""
    fields: Fields = {}
    if vcpu is not None:
        fields["vcpu_count"] = check_vcpu_count(vcpu)
    if memory is not None:
        fields["memory_mib"] = parse_memory_mib(str(memory))
    if disk_size is not None:
        fields["work_disk_size_bytes"] = parse_disk_size(str(disk_size))
    if nat is not None:
        fields["nat"] = nat
    return fields


def new_vm_fields(
    *,
    image: str,
    name: str,
    system_overlay_size: int | str | None,
    init: str,
    publish: Sequence[str | int],
    start: bool,
    auto_remove: bool,
    spec: Mapping[str, Any],
) -> Fields:
    """The body of POST /v1/vms. INVALID_ARGUMENT says what is wrong with it before anything is made."""
    if name and (fault := name_fault(name)):
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT,
            fault,
            hint="a name is 1 to 63 of a-z, 0-9 and -, and neither begins nor ends with -",
        )
    fields: Fields = dict(spec)
    if image:
        fields["image"] = image
    if name:
        fields["name"] = name
    if system_overlay_size is not None:
        fields["system_overlay_size_bytes"] = parse_disk_size(
            str(system_overlay_size), what="system overlay size"
        )
    if init:
        fields["init"] = init
    if publish:
        fields["publish"] = [port_body(parse_published(str(port))) for port in publish]
    if not start:
        fields["start"] = False
    if auto_remove:
        fields["auto_remove"] = True
    return fields


def port_body(spec: PortSpec) -> dict[str, Any]:
    return spec._asdict()


def words(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """A command's words. TypeError for one string: nothing here is parsed by a shell."""
    if isinstance(argv, str | bytes):
        raise TypeError('a command is a list of words, such as ["ls", "-l"] or ["sh", "-c", "ls | wc"]')
    return [os.fspath(word) for word in argv]
