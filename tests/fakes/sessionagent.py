"""An agent with sessions and no processes: what the daemon asks about them, answered from a dict.

`run` is what FakeGuestSocket calls for each connection. `old` plays an agent without the feature.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from banger.guest import wire
from banger.guest.wire import FrameReader, decode_fields, encode_fields, encode_frame

Field = tuple[int, bytes | str | int]
KEPT = (
    *(wire.SESSION_NAME, wire.SESSION_FLAGS, wire.SESSION_ARGUMENT, wire.SESSION_ENV),
    *(wire.SESSION_CWD, wire.SESSION_USER, wire.SESSION_TAG),
)


@dataclass
class Kept:
    """A session: what was asked for, and what became of it."""

    asked: list[tuple[int, bytes]]
    status: str = "running"
    more: list[Field] = field(default_factory=list)
    created: int = 1_700_000_000


class SessionAgent:
    def __init__(self) -> None:
        self.sessions: dict[str, Kept] = {}
        self.signals: list[tuple[str, int]] = []
        self.graces: list[int] = []
        self.old = False

    def run(self, connection: socket.socket) -> None:
        features = "exec" if self.old else "exec sessions"
        fields: list[Field] = [(1, 1), (2, features), (3, "1"), (4, "b")]
        connection.sendall(encode_frame(wire.FRAME_HELLO, encode_fields(fields)))
        reader = FrameReader()
        while data := connection.recv(65536):
            for frame in reader.feed(data):
                connection.sendall(self.answer(frame.type, decode_fields(frame.payload)))

    def answer(self, kind: int, fields: list[tuple[int, bytes]]) -> bytes:
        by_tag = dict(fields)
        session_id = by_tag.get(wire.SESSION_ID, b"").decode()
        if kind == wire.FRAME_SESSION_START:
            return self._start(session_id, fields)
        if kind == wire.FRAME_SESSION_LIST:
            ids = [session_id] if session_id else list(self.sessions)
            records = [
                encode_frame(wire.FRAME_SESSION, self._record(one)) for one in ids if one in self.sessions
            ]
            return b"".join(records) + encode_frame(wire.FRAME_OK)
        if session_id not in self.sessions:
            return refused("not_found")
        kept = self.sessions[session_id]
        if kind == wire.FRAME_SESSION_SIGNAL:
            self.signals.append((session_id, int.from_bytes(by_tag[wire.SESSION_NUMBER], "little")))
        elif kind == wire.FRAME_SESSION_STOP:
            self.graces.append(int.from_bytes(by_tag[wire.SESSION_GRACE_MS], "little"))
            kept.status, kept.more = "exited", [(wire.SESSION_EXIT_SIGNAL, 15)]
            return encode_frame(wire.FRAME_OK, self._record(session_id))
        elif kind == wire.FRAME_SESSION_REMOVE:
            del self.sessions[session_id]
        elif kind == wire.FRAME_SESSION_LOGS:
            return encode_frame(wire.FRAME_STDERR, b"sh: no-such: not found\n") + encode_frame(wire.FRAME_OK)
        else:
            return refused("unsupported")
        return encode_frame(wire.FRAME_OK)

    def _start(self, session_id: str, fields: list[tuple[int, bytes]]) -> bytes:
        kept = Kept(
            [(tag, value) for tag, value in fields if tag in KEPT], created=1_700_000_000 + len(self.sessions)
        )
        if dict(fields)[wire.SESSION_ARGUMENT] == b"no-such":
            kept.status = "failed"
            kept.more = [
                (wire.SESSION_LAUNCH_STAGE, "exec"),
                (wire.SESSION_LAUNCH_MESSAGE, "no-such: not found"),
            ]
        else:
            kept.more = [(wire.SESSION_LAUNCH_STAGE, "running"), (wire.SESSION_PID, 77)]
        self.sessions[session_id] = kept
        return encode_frame(wire.FRAME_OK, self._record(session_id))

    def _record(self, session_id: str) -> bytes:
        kept = self.sessions[session_id]
        fields: list[Field] = [(wire.SESSION_ID, session_id), *kept.asked, (wire.SESSION_STATUS, kept.status)]
        return encode_fields([*fields, (wire.SESSION_CREATED, kept.created), *kept.more])


def refused(code: str) -> bytes:
    return encode_frame(
        wire.FRAME_ERROR, encode_fields([(wire.ERROR_CODE, code), (wire.ERROR_MESSAGE, code)])
    )
