"""A connection to a guest's agent: straight to the guest's socket, else by way of the daemon.

Owned by whoever asked for it, for one request. A caller that may not open the guest's socket is served
through the daemon's Upgrade route. Standard library only. Nothing is left after a crash.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from banger.client.client import Client, quote
from banger.client.errors import GuestUnreachable
from banger.client.http import connect_unix
from banger.guest import wire

if TYPE_CHECKING:
    from banger.client import shapes

CONNECT_TIMEOUT_S = 10.0
UPGRADE = "banger-agent/1"
MAX_KNOWN = 64
EARLY_S = 5.0
"""So long the daemon's answer may take: the agent does not wait for ever for a request (30 s)."""


class AgentConnection(NamedTuple):
    """A blocking socket that speaks the agent's protocol, and what was read from it already.

    workspace: the repository that was brought into the guest, as the daemon has it; None without one.
    """

    socket: socket.socket
    early: bytes = b""
    workspace: shapes.Workspace | None = None


def connect_agent(client: Client, reference: str, *, purpose: str = "exec") -> AgentConnection:
    """Straight to the guest where its socket may be opened, else by way of the daemon.

    WRONG_STATE when it does not run, GUEST_UNREACHABLE when it does not answer. A client's second time knocks
    where the agent was the first time, so that the guest takes the connection while the daemon answers;
    nothing is asked of it before the daemon has named that very place again.
    """
    known = client.agents.pop(reference, None)
    early = _knock_early(*known) if known else None
    knocked = time.monotonic()
    try:
        where = client.connect_vm(reference, purpose=purpose)
        place = (where["vsock_path"], int(where["port"]))
    except BaseException:
        if early is not None:
            early.close()
        raise
    try:
        good = place == known and time.monotonic() - knocked < EARLY_S
        connection = _answered_early(early, good=good) or _handshake(*place)
        if len(client.agents) == MAX_KNOWN:
            client.agents.clear()
        client.agents[reference] = place
        client.opened(connection)
        return AgentConnection(connection, workspace=where.get("workspace"))
    except (PermissionError, FileNotFoundError):
        return _upgrade(client, reference)._replace(workspace=where.get("workspace"))
    except OSError as error:
        raise GuestUnreachable(
            f"the agent of {where['name']} does not answer",
            details=f"{where['vsock_path']}: {error}",
            hint=f"banger vm logs {where['name']}",
        ) from error


def _knock_early(path: str, port: int) -> socket.socket | None:
    try:
        return _knock(path, port)
    except OSError:  # the daemon will say why
        return None


def _answered_early(connection: socket.socket | None, *, good: bool) -> socket.socket | None:
    """None where there is nothing to go on with: no good any more, or the machine ended meanwhile."""
    if connection is None or not good:
        if connection is not None:
            connection.close()
        return None
    try:
        return _answered(connection)
    except ConnectionError:
        return None


def _handshake(path: str, port: int) -> socket.socket:
    return _answered(_knock(path, port))


def _knock(path: str, port: int) -> socket.socket:
    connection = connect_unix(path, CONNECT_TIMEOUT_S)
    try:
        connection.sendall(wire.connect_line(port))
        return connection
    except BaseException:
        connection.close()
        raise


def _answered(connection: socket.socket) -> socket.socket:
    """The same, after the monitor's answer; closed on failure."""
    try:
        answer = b""
        while not wire.connected(answer):
            byte = connection.recv(1)
            if not byte:
                raise ConnectionError(f"handshake {answer!r}")
            answer += byte
        return connection
    except wire.WireError as error:
        connection.close()
        raise ConnectionError(str(error)) from error
    except BaseException:
        connection.close()
        raise


def _upgrade(client: Client, reference: str) -> AgentConnection:
    connection, response = client.open(
        "GET", f"/v1/vms/{quote(reference)}/agent", headers={"Connection": "Upgrade", "Upgrade": UPGRADE}
    )
    taken, early = connection.take_socket()
    if response.status != 101:
        taken.close()
        raise GuestUnreachable("the daemon does not pass the guest's agent on")
    client.opened(taken)
    return AgentConnection(taken, early)
