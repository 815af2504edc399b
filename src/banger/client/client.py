"""Below the Python SDK (client/sdk.py), and the CLI's: the daemon's routes, one connection reused.

A Client starts the daemon when it is not there, and replaces one that is older than itself while that is
idle (its VMs run on). Synchronous, standard library only, not for several threads at once. Every call may
raise BangerError.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import banger
from banger.client.errors import DaemonUnreachable, error_from_body
from banger.client.http import Connection, HTTPError, Response
from banger.config.paths import Paths, resolve_paths
from banger.errors import BangerError, ErrorCode

if TYPE_CHECKING:
    import socket

    from banger.client import shapes

REQUEST_TIMEOUT_S = 60.0
STREAM_TIMEOUT_S = 30.0
"""Without a line: six of the daemon's heartbeats are missing by then."""
BYTES_TIMEOUT_S = 300.0
"""Until the next piece; git may think for long before it sends the first of a big pack."""
STOP_TIMEOUT_S = 60.0
RECONNECTS = 3
_UNSAFE = frozenset(b"/?#%\\ ")


class Client:
    """Talks to the daemon of these paths (default: the environment's). A context manager."""

    def __init__(
        self, paths: Paths | None = None, *, autostart: bool = True, version: str = banger.__version__
    ) -> None:
        self.paths: Paths = resolve_paths() if paths is None else paths
        self._autostart = autostart
        self._version = version
        self._idle: Connection | None = None
        self.agents: dict[str, tuple[str, int]] = {}
        """For guest.connect_agent: by reference, (socket, port) where the agent last answered."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    # the daemon

    def info(self) -> shapes.Info:
        return self._get("/v1")  # type: ignore[return-value]

    def stop_daemon(self, *, if_idle: bool = False) -> bool:
        """End the daemon and wait until it is gone; False when there was none. VMs run on."""
        from banger.client.start import wait_gone

        quiet = Client(self.paths, autostart=False, version="")
        with quiet:
            try:
                pid = int(quiet.info()["pid"])
            except DaemonUnreachable:
                return False
            pidfd = os.pidfd_open(pid)
            try:
                quiet.request("POST", "/v1/daemon/stop", {"if_idle": if_idle})
                self.close()
                if not wait_gone(pidfd, STOP_TIMEOUT_S):
                    raise BangerError(ErrorCode.TIMEOUT, f"the daemon (pid {pid}) does not end")
            finally:
                os.close(pidfd)
        return True

    # VMs: reading

    def list_vms(self) -> list[shapes.VM]:
        vms: list[shapes.VM] = self._get("/v1/vms")["vms"]
        return vms

    def show_vm(self, reference: str) -> shapes.VM:
        return self._get(f"/v1/vms/{quote(reference)}")  # type: ignore[return-value]

    def stats_vm(self, reference: str) -> shapes.VMStats:
        """Taken now; touches nothing."""
        return self.request("POST", f"/v1/vms/{quote(reference)}/stats")  # type: ignore[return-value]

    def health_vm(self, reference: str) -> shapes.Health:
        """A dead VM is not healthy; an agent that does not answer is GUEST_UNREACHABLE or TIMEOUT."""
        return self._get(f"/v1/vms/{quote(reference)}/health")  # type: ignore[return-value]

    def ports_vm(self, reference: str) -> shapes.Ports:
        """Who listens in the guest; touches nothing. WRONG_STATE when it does not run."""
        return self._get(f"/v1/vms/{quote(reference)}/ports")  # type: ignore[return-value]

    def net_why(self, reference: str, host: str, *, port: int = 0, protocol: str = "tcp") -> shapes.NetWhy:
        """What stops the guest's packets to a host, if anything does; some seconds. port 0: an echo."""
        body = {"host": host, "port": port, "protocol": protocol}
        return self.request("POST", f"/v1/vms/{quote(reference)}/net/why", body)  # type: ignore[return-value]

    def connect_vm(self, reference: str, *, purpose: str = "exec") -> shapes.Connect:
        """Where its agent is; touches the VM."""
        return self.request("POST", f"/v1/vms/{quote(reference)}/connect", {"purpose": purpose})  # type: ignore[return-value]

    def logs(
        self, reference: str, *, source: str = "console", follow: bool = False, tail: int | None = None
    ) -> Iterator[bytes]:
        """Raw pieces of the log: nothing is made safe for a terminal."""
        target = (
            f"/v1/vms/{quote(reference)}/logs?source={quote(source)}&follow={'true' if follow else 'false'}"
        )
        if tail is not None:
            target += f"&tail={tail}"
        connection, response = self.open("GET", target, timeout_s=None if follow else REQUEST_TIMEOUT_S)
        try:
            yield from _translated(response.chunks())
        finally:
            connection.close()

    def lease(self, reference: str) -> Connection:
        """Hold a VM with auto_remove: for as long as the connection returned is open."""
        connection, response = self.open("POST", f"/v1/vms/{quote(reference)}/lease")
        try:
            next(_translated(response.lines()), None)
        except BaseException:
            connection.close()
            raise
        return connection

    # VMs: operations

    def create_vm(self, **fields: Any) -> Operation:
        """fields: those of CreateVM (docs/api.md)."""
        return self.operation("POST", "/v1/vms", fields)

    def delete_vm(
        self, reference: str, *, if_not_running: bool = False, discard_work: bool = False
    ) -> Operation:
        """Its work is kept first, or WORK_NOT_KEPT; discard_work: neither kept, nor what was kept before.
        if_not_running: abort nothing, and fail with WRONG_STATE when it runs."""
        wanted = {"if_not_running": if_not_running, "discard_work": discard_work}
        query = "&".join(f"{name}=true" for name, said in wanted.items() if said)
        return self.operation("DELETE", f"/v1/vms/{quote(reference)}" + (f"?{query}" if query else ""))

    def set_vm(self, reference: str, **fields: Any) -> Operation:
        return self.operation("PATCH", f"/v1/vms/{quote(reference)}", fields)

    def start_vm(self, reference: str) -> Operation:
        return self.operation("POST", f"/v1/vms/{quote(reference)}/start")

    def stop_vm(self, reference: str) -> Operation:
        return self.operation("POST", f"/v1/vms/{quote(reference)}/stop")

    def restart_vm(self, reference: str) -> Operation:
        return self.operation("POST", f"/v1/vms/{quote(reference)}/restart")

    def kill_vm(self, reference: str, *, signal: str = "TERM") -> Operation:
        return self.operation("POST", f"/v1/vms/{quote(reference)}/kill", {"signal": signal})

    def publish_ports(self, reference: str, ports: list[dict[str, Any]]) -> Operation:
        """ports: fields of PublishPort (docs/api.md)."""
        return self.operation("POST", f"/v1/vms/{quote(reference)}/publish", {"ports": ports})

    def unpublish_ports(
        self, reference: str, ports: list[dict[str, Any]], *, everything: bool = False
    ) -> Operation:
        """ports: fields of UnpublishPort (docs/api.md). The ports that are published, or everything."""
        body = {"ports": ports, "all": everything}
        return self.operation("POST", f"/v1/vms/{quote(reference)}/unpublish", body)

    # workspaces, and the work that is kept of them

    def set_workspace(self, reference: str, **fields: Any) -> shapes.VM:
        """fields: those of SetWorkspace (docs/api.md): what was brought into the guest."""
        return self.request("PUT", f"/v1/vms/{quote(reference)}/workspace", fields)  # type: ignore[return-value]

    def keep_work(self, reference: str, *, ignored: bool = False) -> Operation:
        """Of a VM that is there, now; the result is a Work. ignored: with the files that git ignores."""
        return self.operation("POST", f"/v1/vms/{quote(reference)}/workspace/keep", {"ignored": ignored})

    def list_work(self) -> list[shapes.Work]:
        """Of VMs that are there, and of those that are gone."""
        work: list[shapes.Work] = self._get("/v1/work")["work"]
        return work

    def show_work(self, reference: str) -> shapes.Work:
        """reference: a VM's id, name or unique id prefix, be the VM there or not."""
        return self._get(f"/v1/work/{quote(reference)}")  # type: ignore[return-value]

    def remove_work(self, reference: str) -> shapes.Work:
        """As it was. IN_USE while the VM is there."""
        return self.request("DELETE", f"/v1/work/{quote(reference)}")  # type: ignore[return-value]

    def work_pack(self, reference: str, have: Sequence[str] = ()) -> Iterator[bytes]:
        """A pack of git's with all that is kept, without what the commits in `have` reach. What is in it a
        guest wrote: check it."""
        return self._bytes("POST", f"/v1/work/{quote(reference)}/pack", {"have": list(have)})

    def work_patch(self, reference: str, *, base: str = "") -> Iterator[bytes]:
        """A binary patch for `git apply`: from a commit, or from what was brought, to the files as kept."""
        target = f"/v1/work/{quote(reference)}/patch"
        return self._bytes("GET", f"{target}?base={quote(base)}" if base else target)

    # the host

    def audit(self, *, fix: bool = False) -> list[shapes.Finding]:
        """What is on the host that nothing explains; fix: remove what carries this instance's mark."""
        reply = self.request("POST", "/v1/host/repair") if fix else self._get("/v1/host/audit")
        findings: list[shapes.Finding] = reply["findings"]
        return findings

    # images and kernels

    def list_images(self) -> list[shapes.Image]:
        images: list[shapes.Image] = self._get("/v1/images")["images"]
        return images

    def image_catalog(self) -> list[shapes.CatalogImage]:
        images: list[shapes.CatalogImage] = self._get("/v1/catalog/images")["images"]
        return images

    def show_image(self, reference: str) -> shapes.Image:
        return self._get(f"/v1/images/{quote(reference)}")  # type: ignore[return-value]

    def pull_image(self, **fields: Any) -> Operation:
        """fields: those of PullImage (docs/api.md). The result is the image."""
        return self.operation("POST", "/v1/images/pull", fields)

    def register_image(self, **fields: str) -> shapes.Image:
        """fields: those of RegisterImage (docs/api.md)."""
        return self.request("POST", "/v1/images/register", dict(fields))  # type: ignore[return-value]

    def promote_image(self, reference: str) -> Operation:
        return self.operation("POST", f"/v1/images/{quote(reference)}/promote")

    def prune_image_cache(self, *, dry_run: bool = False) -> shapes.CachePruned:
        return self.request("POST", "/v1/images/cache/prune", {"dry_run": dry_run})  # type: ignore[return-value]

    def delete_image(self, reference: str) -> shapes.Image:
        """IN_USE when VMs have it."""
        return self.request("DELETE", f"/v1/images/{quote(reference)}")  # type: ignore[return-value]

    def list_kernels(self) -> list[shapes.Kernel]:
        kernels: list[shapes.Kernel] = self._get("/v1/kernels")["kernels"]
        return kernels

    def kernel_catalog(self) -> list[shapes.CatalogKernel]:
        kernels: list[shapes.CatalogKernel] = self._get("/v1/catalog/kernels")["kernels"]
        return kernels

    def show_kernel(self, name: str) -> shapes.Kernel:
        return self._get(f"/v1/kernels/{quote(name)}")  # type: ignore[return-value]

    def pull_kernel(self, name: str) -> Operation:
        return self.operation("POST", f"/v1/kernels/{quote(name)}/pull")

    def import_kernel(self, name: str, folder: str) -> Operation:
        """folder: an absolute path on the daemon's host."""
        return self.operation("POST", "/v1/kernels/import", {"name": name, "folder": folder})

    def remove_kernel(self, name: str) -> shapes.Kernel:
        return self.request("DELETE", f"/v1/kernels/{quote(name)}")  # type: ignore[return-value]

    # underneath

    def operation(self, method: str, target: str, body: dict[str, Any] | None = None) -> Operation:
        """Start a long piece of work; it goes on whether or not anybody waits."""
        reply = self.request(method, target, body)
        return Operation(self, reply)  # type: ignore[arg-type]

    def _bytes(self, method: str, target: str, body: dict[str, Any] | None = None) -> Iterator[bytes]:
        """The reply's raw pieces; asked for when the first is, and the connection closed after the last."""
        connection, response = self.open(method, target, body, timeout_s=BYTES_TIMEOUT_S)
        try:
            yield from _translated(response.chunks())
        finally:
            connection.close()

    def _get(self, target: str) -> dict[str, Any]:
        return self.request("GET", target)

    def request(self, method: str, target: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that the daemon answers; its error as BangerError."""
        connection, response = self.open(method, target, body)
        try:
            reply = json.loads(response.read() or b"{}")
        except (OSError, HTTPError) as error:
            connection.close()
            raise _gone(error) from error
        except ValueError as error:
            connection.close()
            raise BangerError(ErrorCode.INTERNAL, "the daemon's answer is no JSON") from error
        if connection.reusable and connection.idle:
            self._keep(connection)
        else:
            connection.close()
        if not isinstance(reply, dict):
            raise BangerError(ErrorCode.INTERNAL, "the daemon's answer is no object")
        return reply

    def open(
        self,
        method: str,
        target: str,
        body: dict[str, Any] | None = None,
        *,
        timeout_s: float | None = REQUEST_TIMEOUT_S,
        headers: dict[str, str] | None = None,
    ) -> tuple[Connection, Response]:
        """Send a request and read the reply's head; the caller reads the body and closes the connection."""
        payload = None if body is None else json.dumps(body).encode()
        sent = {"Banger-Client-Version": self._version} if self._version else {}
        sent.update(headers or {})
        for attempt in (1, 2):
            reused = self._idle is not None
            connection = self._connection()
            connection.socket.settimeout(timeout_s)
            try:
                response = connection.request(method, target, headers=sent, body=payload)
            except (OSError, HTTPError) as error:
                connection.close()
                # an idle connection that the daemon closed meanwhile: nothing was answered on it, and
                # only what changes nothing is asked again
                if attempt == 1 and reused and method == "GET":
                    continue
                raise _gone(error) from error
            except BaseException:
                connection.close()
                raise
            if response.status == 426 and attempt == 1 and self._version:
                connection.close()
                self._replace_daemon()
                sent.pop("Banger-Client-Version", None)
                continue
            if response.status >= 400:
                try:
                    raise _failure(response)
                finally:
                    connection.close()
            return connection, response
        raise DaemonUnreachable("the daemon does not answer")

    def opened(self, connection: socket.socket) -> None:
        """Told of each connection to a guest's agent that is made with this client (client/calls.py)."""

    def _connection(self) -> Connection:
        if self._idle is not None:
            connection, self._idle = self._idle, None
            if connection.is_fresh():
                return connection
            connection.close()
        try:
            return Connection(self.paths.socket, REQUEST_TIMEOUT_S)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            if not self._autostart:
                raise DaemonUnreachable("the daemon is not running", hint="banger daemon start") from error
        except OSError as error:
            raise _gone(error) from error
        from banger.client.start import start_daemon

        start_daemon(self.paths)
        try:
            return Connection(self.paths.socket, REQUEST_TIMEOUT_S)
        except OSError as error:
            raise _gone(error) from error

    def _keep(self, connection: Connection) -> None:
        if self._idle is not None:
            self._idle.close()
        self._idle = connection

    def _replace_daemon(self) -> None:
        """The daemon is older than this client, and idle: end it and start our own. VMs run on."""
        self.close()
        try:
            self.stop_daemon(if_idle=True)
        except BangerError as error:
            if error.code is not ErrorCode.BUSY:  # it became busy: it serves us as it is
                raise


class Operation:
    """A long piece of work in the daemon, and how to follow it."""

    def __init__(self, client: Client, reply: shapes.Operation) -> None:
        self._client = client
        self.id: str = reply["id"]
        self.kind: str = reply["kind"]
        self.url: str = reply["url"]
        self.vm_id: str = reply.get("vm_id", "")

    def cancel(self) -> None:
        self._client.request("POST", f"{self.url}/cancel")

    def wait(self, on_event: Callable[[shapes.Event], None] | None = None) -> dict[str, Any]:
        """Its result; its error as BangerError. A connection that breaks is made again, nothing is missed."""
        for event in self.events():
            if on_event is not None:
                on_event(event)
            if event["kind"] == "result":
                return event.get("result", {})
            if event["kind"] == "error":
                raise error_from_body(event.get("error", {}), fallback=f"{self.kind} failed")
        raise DaemonUnreachable(f"the daemon said nothing about the end of {self.kind}")

    def events(self) -> Iterator[shapes.Event]:
        """Every event but heartbeats, to the last."""
        after, failures = 0, 0
        while True:
            try:
                connection, response = self._client.open(
                    "GET", f"{self.url}/events?after={after}", timeout_s=STREAM_TIMEOUT_S
                )
                try:
                    for line in response.lines():
                        event: shapes.Event = json.loads(line)
                        self.vm_id = event.get("vm_id", "") or self.vm_id
                        after, failures = event["seq"], 0
                        if event["kind"] != "heartbeat":
                            yield event
                        if event["kind"] in ("result", "error"):
                            return
                finally:
                    connection.close()
                failure: Exception = HTTPError("the stream ended early")
            except (OSError, HTTPError, ValueError, DaemonUnreachable) as error:
                failure = error
            except BangerError as error:
                if error.code is ErrorCode.NOT_FOUND:
                    raise DaemonUnreachable(
                        f"the daemon was restarted while {self.kind} was under way",
                        hint="`banger vm list` shows what became of it",
                    ) from error
                raise
            failures += 1
            if failures > RECONNECTS:
                raise _gone(failure) from failure


def quote(text: str) -> str:
    """A reference as one path segment (percent-encoded UTF-8)."""
    raw = text.encode("utf-8", "surrogateescape")
    if text in (".", ".."):
        return "".join(f"%{byte:02X}" for byte in raw)
    return (
        "".join(chr(byte) if 32 < byte < 127 and byte not in _UNSAFE else f"%{byte:02X}" for byte in raw)
        or "%20"
    )


def _failure(response: Response) -> BangerError:
    try:
        body = json.loads(response.read())
    except (OSError, HTTPError, ValueError):
        body = {}
    known: dict[str, object] = body if isinstance(body, dict) else {}
    return error_from_body(known, fallback=f"the daemon answered {response.status}")


def _translated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces; a connection that breaks is the daemon that went away."""
    try:
        yield from pieces
    except (OSError, HTTPError) as error:
        raise _gone(error) from error


def _gone(error: Exception) -> BangerError:
    if isinstance(error, BangerError):
        return error
    if isinstance(error, PermissionError):
        return BangerError(
            ErrorCode.PERMISSION_DENIED,
            "the daemon's socket belongs to another user",
            hint="run banger as the user who started the daemon",
            details=str(error),
        )
    if isinstance(error, TimeoutError):
        return DaemonUnreachable("the daemon does not answer", details=str(error))
    return DaemonUnreachable("the daemon went away", details=f"{type(error).__name__}: {error}")
