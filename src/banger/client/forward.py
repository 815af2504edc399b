"""A connection to a TCP port on a guest's own loopback, through its agent: what ssh is carried over.

Needs no address and no route, and no daemon once it is made. `open_port` gives the socket itself, with
nothing of ours left in the data path; `open_ssh` waits for a guest that is still starting its ssh server.
Standard library only. After a crash of ours the agent closes the connection to the port.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable

from banger.client.agentconnection import AgentConnection, connect_agent
from banger.client.client import Client
from banger.client.errors import GuestUnreachable
from banger.client.guest import CommandNotStarted, Exec
from banger.errors import BangerError, ErrorCode
from banger.guest import wire

SSH_PORT = 22
ANSWER_TIMEOUT_S = 75.0
"""The agent waits 60 s for a root that is still being mounted."""
BOOT_TIMEOUT_S = 180.0
"""How long an ssh server is waited for while the guest is starting; an emulated one takes a minute."""
ASK_AGAIN_S = 0.5
LOOK_AGAIN_S = 3.0
PIECE = 64 << 10
PIPE_PIECE = 4096  # PIPE_BUF: what a pipe that polls writable takes without blocking (pipe(7))

NO_SERVER, STARTING = 3, 4
_LOOK = f"""command -v sshd >/dev/null 2>&1 || command -v dropbear >/dev/null 2>&1 || exit {NO_SERVER}
if [ -d /run/systemd/system ]; then
  case $(systemctl is-system-running 2>/dev/null) in
    running|degraded|maintenance|stopping) exit 0 ;;
  esac
  exit {STARTING}
fi
read -r up _ </proc/uptime
[ "${{up%%.*}}" -ge 60 ] || exit {STARTING}
"""
"""Whether the guest has an ssh server that may still come: the statuses above, else 0."""


class PortRefused(BangerError):
    """Nobody listens at the guest's port."""

    def __init__(self, brief: str, *, hint: str | None = None) -> None:
        super().__init__(ErrorCode.GUEST_ERROR, brief, hint=hint, data={"agent_code": "refused"})


def open_port(client: Client, reference: str, port: int) -> socket.socket:
    """Connected to 127.0.0.1:port, else [::1]:port, in the guest; blocking.

    PortRefused, GUEST_UNREACHABLE.
    """
    connection = connect_agent(client, reference)
    try:
        connection.socket.settimeout(ANSWER_TIMEOUT_S)
        _ask(connection, port)
        connection.socket.settimeout(None)
    except (OSError, wire.WireError) as error:
        connection.socket.close()
        raise GuestUnreachable("the guest's agent does not answer", details=str(error)) from error
    except BaseException:
        connection.socket.close()
        raise
    return connection.socket


def _ask(connection: AgentConnection, port: int) -> None:
    """HELLO, the request, OK: read to the byte, for what follows is the port's."""
    frames = _Frames(connection)
    kind, payload = frames.read()
    if kind != wire.FRAME_HELLO:
        raise wire.WireError("the agent does not say HELLO")
    if "forward" not in wire.Fields(payload).text(wire.HELLO_FEATURES).split():
        raise GuestUnreachable(
            "the guest's agent is older than this banger and cannot carry ssh",
            hint="restart the VM: it boots with the new agent",
        )
    request = wire.encode_fields([(wire.FORWARD_PORT, port)])
    connection.socket.sendall(wire.encode_frame(wire.FRAME_FORWARD, request))
    kind, payload = frames.read()
    if kind == wire.FRAME_ERROR:
        fields = wire.Fields(payload)
        code, message = fields.text(wire.ERROR_CODE), fields.text(wire.ERROR_MESSAGE)
        if code == "refused":
            raise PortRefused(f"nobody listens in the guest: {message}")
        raise BangerError(ErrorCode.GUEST_ERROR, message or code, data={"agent_code": code})
    if kind != wire.FRAME_OK:
        raise wire.WireError(f"the agent answers with frame {kind:#x}")
    if frames.held:
        raise wire.WireError("the agent says more than it was asked")


class _Frames:
    """Frames from a connection without reading a byte past them."""

    def __init__(self, connection: AgentConnection) -> None:
        self._socket = connection.socket
        self.held = connection.early

    def read(self) -> tuple[int, bytes]:
        length, kind = wire.decode_header(self._exactly(wire.WIRE_HEADER_BYTES))
        return kind, self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        data, self.held = self.held[:length], self.held[length:]
        while len(data) < length:
            piece = self._socket.recv(length - len(data))
            if not piece:
                raise ConnectionError("the agent closed the connection")
            data += piece
        return data


def open_ssh(
    client: Client, name: str, *, port: int = SSH_PORT, waiting: Callable[[], None] = lambda: None
) -> socket.socket:
    """As open_port, but a guest that is starting is given the time to; `waiting` is called once then."""
    began = time.monotonic()
    looked = 0.0
    status = STARTING
    while True:
        try:
            return open_port(client, name, port)
        except PortRefused:
            if status != STARTING or time.monotonic() - began > BOOT_TIMEOUT_S:
                raise PortRefused(
                    f"no ssh server listens in {name} (port {port})", hint=_without_ssh(name)
                ) from None
        if time.monotonic() - looked > LOOK_AGAIN_S:
            first, looked = not looked, time.monotonic()
            status = _look(client, name)
            if status == NO_SERVER and port == SSH_PORT:
                raise PortRefused(f"the image of {name} has no ssh server", hint=_without_ssh(name))
            if status != STARTING:
                continue  # it may have come up between the two questions: once more
            if first:
                waiting()
        time.sleep(ASK_AGAIN_S)


def _without_ssh(name: str) -> str:
    return f"no ssh is needed for: banger vm shell {name}, banger vm exec {name} -- CMD, banger vm cp"


def _look(client: Client, name: str) -> int:
    """What _LOOK says in the guest; an image without a shell has no ssh server either."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        connection = connect_agent(client, name)
        return Exec(connection, stdin=None, stdout=null, stderr=null).run(["/bin/sh", "-c", _LOOK])
    except CommandNotStarted:
        return NO_SERVER
    finally:
        os.close(null)


def pass_on(connection: socket.socket, fd: int) -> None:
    """Give the connection to whoever is at the other end of the Unix socket fd (ssh's ProxyUseFdpass)."""
    with socket.socket(fileno=os.dup(fd)) as receiver:
        socket.send_fds(receiver, [b"\0"], [connection.fileno()])


def pump(connection: socket.socket, stdin: int = 0, stdout: int = 1) -> None:
    """Bytes between our streams and the connection until the guest ends it, or nobody reads any more."""
    connection.setblocking(False)
    to_guest, to_us = bytearray(), bytearray()
    guest_ended = stdin_ended = told = False
    while not (guest_ended and not to_us):
        poll = select.poll()
        events = (0 if to_us or guest_ended else select.POLLIN) | (select.POLLOUT if to_guest else 0)
        if events:
            poll.register(connection, events)
        if to_us:
            poll.register(stdout, select.POLLOUT)
        if not to_guest and not stdin_ended and not guest_ended:
            poll.register(stdin, select.POLLIN)
        ready = dict(poll.poll())
        at_guest = ready.get(connection.fileno(), 0)
        try:
            if at_guest and to_guest:
                del to_guest[: connection.send(to_guest)]
            if at_guest and events & select.POLLIN:
                data = connection.recv(PIECE)
                guest_ended = not data
                to_us += data
        except BlockingIOError:
            pass
        except OSError:  # the guest has gone
            guest_ended = True
            to_guest.clear()
        if stdin in ready:
            data = os.read(stdin, PIECE)
            stdin_ended = not data
            to_guest += data
        if stdin_ended and not to_guest and not told and not guest_ended:
            told = True
            connection.shutdown(socket.SHUT_WR)
        if to_us and stdout in ready:
            try:
                del to_us[: os.write(stdout, to_us[:PIPE_PIECE])]
            except BlockingIOError:
                pass
            except BrokenPipeError:
                return
