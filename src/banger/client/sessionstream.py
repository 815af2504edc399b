"""Exchanges with the agent about a session: what its errors mean, and `logs` and `send`.

Also the base of client/attach.py. The guest's socket is opened directly where that may be done, so that the
daemon may come and go. After a crash of ours the session goes on.
"""

from __future__ import annotations

from banger.client.agentconnection import AgentConnection
from banger.client.exchange import MAX_QUEUED, Exchange
from banger.errors import BangerError, ErrorCode
from banger.guest import wire
from banger.guest.wire import Fields
from banger.model.sessions import REFUSALS


class SessionExchange(Exchange):
    """An exchange whose refusals are a session's."""

    def _refusal(self, fields: Fields) -> BangerError:
        code = fields.text(wire.ERROR_CODE, most=64)
        message = fields.text(wire.ERROR_MESSAGE, most=1024) or code
        if code == "unsupported":
            return BangerError(
                ErrorCode.WRONG_STATE,
                "the guest's agent is older than sessions",
                hint="restart the VM: banger vm restart",
            )
        return BangerError(REFUSALS.get(code, ErrorCode.GUEST_ERROR), message, data={"agent_code": code})


class LogStream(SessionExchange):
    """A session's logs onto our stdout and stderr, to their end or, following, to the command's."""

    _patient = True

    def run(self, request: bytes) -> int:
        try:
            return self._exchange(request)
        finally:
            self.close()

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == wire.FRAME_OK:
            self._status = 0


class Sender(SessionExchange):
    """Text, or our stdin, into a session's stdin. Waits for a command that does not read."""

    _patient = True

    def __init__(self, connection: AgentConnection, *, text: bytes = b"", stdin: int | None = None) -> None:
        super().__init__(connection, stdin=stdin)
        self._text = memoryview(text)
        self._ended = False

    def run(self, request: bytes) -> int:
        """Returns once the session has taken all."""
        try:
            return self._exchange(request)
        finally:
            self.close()

    def _prepare(self) -> None:
        while self._text and self._window > 0 and len(self._to_guest) < MAX_QUEUED:
            piece = self._text[: min(self._window, wire.WIRE_MAX_PAYLOAD)]
            self._send_stdin(bytes(piece))
            self._text = self._text[len(piece) :]
        if not self._text and self._stdin is None and not self._ended:
            self._ended = True
            self._send_stdin(b"")

    def _typed(self, data: bytes) -> None:
        if data:
            self._send_stdin(data)

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == wire.FRAME_OK:
            self._status = 0
