"""A command that is started in a guest and left alone (`vm exec -d`): no streams, no status.

The agent forgets it once it runs; whoever wants its output or its end takes a session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from banger.client.agentconnection import CONNECT_TIMEOUT_S, AgentConnection
from banger.client.errors import GuestUnreachable
from banger.client.exchange import ANSWER_TIMEOUT_S
from banger.client.guest import not_started
from banger.errors import BangerError, ErrorCode
from banger.guest import wire

FEATURE = "detach"


def start_detached(
    connection: AgentConnection,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    cwd: str = "",
    user: str = "",
) -> int:
    """The command's pid in the guest, once it runs. Closes the connection.

    CommandNotStarted; GUEST_ERROR where the guest's agent is older than this; GUEST_UNREACHABLE.
    """
    try:
        request = wire.encode_exec(argv, env, cwd=cwd, user=user, detach=True)
    except wire.WireError as error:
        connection.socket.close()
        raise BangerError(ErrorCode.INVALID_ARGUMENT, str(error)) from None
    try:
        frames = _Frames(connection)
        hello = frames.next(CONNECT_TIMEOUT_S)
        if hello.type != wire.FRAME_HELLO:
            raise wire.WireError("the agent does not say HELLO")
        if FEATURE not in wire.Fields(hello.payload).text(wire.HELLO_FEATURES).split():
            raise BangerError(
                ErrorCode.GUEST_ERROR,
                "the guest's agent cannot detach a command",
                hint="it came with an older banger: restart the VM",
            )
        connection.socket.sendall(request)
        reply = frames.next(ANSWER_TIMEOUT_S)
        fields = wire.Fields(reply.payload)
        if reply.type == wire.FRAME_ERROR:
            raise not_started(fields)
        if reply.type != wire.FRAME_STARTED:
            raise wire.WireError(f"frame {reply.type:#x} in place of STARTED")
        return fields.number(wire.STARTED_PID)
    except wire.WireError as error:
        raise GuestUnreachable("the guest's agent speaks nonsense", details=str(error)) from error
    except OSError as error:
        raise GuestUnreachable("the guest's agent does not answer", details=str(error)) from error
    finally:
        connection.socket.close()


class _Frames:
    """Frames one at a time, from a connection that may have been read ahead."""

    def __init__(self, connection: AgentConnection) -> None:
        self._socket = connection.socket
        self._reader = wire.FrameReader()
        self._waiting = self._reader.feed(connection.early)

    def next(self, timeout_s: float) -> wire.Frame:
        self._socket.settimeout(timeout_s)
        while not self._waiting:
            data = self._socket.recv(64 << 10)
            if not data:
                raise ConnectionError("it closed the connection")
            self._waiting += self._reader.feed(data)
        return self._waiting.pop(0)
