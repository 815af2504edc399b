"""The session part of the agent's protocol: the requests (ARCHITECTURE.md, "The agent's protocol").

Pure bytes, no I/O; imports only wire, so that the CLI's own client may use it. Encoders
raise WireError for what cannot be asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from banger.guest import wire
from banger.guest.wire import WireError, encode_fields, encode_frame

_ID = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")


def is_session_id(text: str) -> bool:
    """32 lower-case hexadecimal digits."""
    return _ID.fullmatch(text) is not None


def encode_session_start(
    session_id: str,
    name: str,
    *,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    user: str = "",
    tags: Sequence[str] = (),
    terminal: bool = False,
    stdin: bool = False,
    rows: int = 0,
    cols: int = 0,
) -> bytes:
    """The whole SESSION_START frame. tags: `key=value` or a word each."""
    if not _NAME.fullmatch(name):
        raise WireError("a session's name is 1 to 63 of letters, digits, '.', '_' and '-'")
    wire.encode_exec(argv, env, cwd=cwd, user=user)  # checks what an EXEC has to fulfil, too
    if len(tags) > wire.WIRE_MAX_SESSION_TAGS:
        raise WireError(f"more than {wire.WIRE_MAX_SESSION_TAGS} tags")
    if any(not tag or "\0" in tag or len(_bytes(tag)) > wire.WIRE_MAX_SESSION_TAG for tag in tags):
        raise WireError(f"a tag that is empty, has a NUL byte or more than {wire.WIRE_MAX_SESSION_TAG} bytes")
    flags = (wire.SESSION_FLAG_TERMINAL if terminal else 0) | (wire.SESSION_FLAG_STDIN if stdin else 0)
    fields: list[tuple[int, bytes | str | int]] = [_id(session_id), (wire.SESSION_NAME, name)]
    fields += [(wire.SESSION_FLAGS, flags)]
    fields += [(wire.SESSION_ARGUMENT, argument) for argument in argv]
    fields += [(wire.SESSION_ENV, f"{key}={value}") for key, value in (env or {}).items()]
    fields += [(wire.SESSION_CWD, cwd)] if cwd else []
    fields += [(wire.SESSION_USER, user)] if user else []
    fields += [(wire.SESSION_TAG, tag) for tag in tags]
    fields += [(wire.SESSION_ROWS, rows), (wire.SESSION_COLS, cols)]
    return encode_frame(wire.FRAME_SESSION_START, encode_fields(fields))


def encode_session_list(session_id: str | None = None) -> bytes:
    """All sessions, or one."""
    return (
        _request(wire.FRAME_SESSION_LIST)
        if session_id is None
        else _request(wire.FRAME_SESSION_LIST, session_id)
    )


def encode_session_attach(
    session_id: str,
    *,
    write: bool = False,
    replay: str = "unseen",
    rows: int = 0,
    cols: int = 0,
) -> bytes:
    """replay: `unseen` (what the last one who was attached has not seen), `all`, or `none`."""
    flags = {"unseen": 0, "all": wire.SESSION_ATTACH_ALL, "none": wire.SESSION_ATTACH_NOW}[replay]
    flags |= wire.SESSION_ATTACH_WRITE if write else 0
    more = [(wire.SESSION_FLAGS, flags), (wire.SESSION_ROWS, rows), (wire.SESSION_COLS, cols)]
    return _request(wire.FRAME_SESSION_ATTACH, session_id, *more)


def encode_session_signal(session_id: str, number: int) -> bytes:
    return _request(wire.FRAME_SESSION_SIGNAL, session_id, (wire.SESSION_NUMBER, number))


def encode_session_stop(session_id: str, grace_ms: int) -> bytes:
    return _request(wire.FRAME_SESSION_STOP, session_id, (wire.SESSION_GRACE_MS, grace_ms))


def encode_session_logs(
    session_id: str,
    *,
    follow: bool = False,
    stdout: bool = True,
    stderr: bool = True,
    tail: int | None = None,
) -> bytes:
    """tail: only that many last lines of each stream."""
    flags = wire.SESSION_LOGS_FOLLOW if follow else 0
    if stdout != stderr:
        flags |= wire.SESSION_LOGS_STDOUT if stdout else wire.SESSION_LOGS_STDERR
    more = [(wire.SESSION_FLAGS, flags)]
    more += [] if tail is None else [(wire.SESSION_TAIL_LINES, tail)]
    return _request(wire.FRAME_SESSION_LOGS, session_id, *more)


def encode_session_remove(session_id: str, *, force: bool = False) -> bytes:
    return _request(
        wire.FRAME_SESSION_REMOVE, session_id, (wire.SESSION_FLAGS, wire.SESSION_REMOVE_FORCE if force else 0)
    )


def encode_session_send(session_id: str, *, end: bool = False) -> bytes:
    """STDIN frames follow it, an empty one ends them. end: the command's stdin ends there, too."""
    return _request(
        wire.FRAME_SESSION_SEND, session_id, (wire.SESSION_FLAGS, wire.SESSION_SEND_END if end else 0)
    )


def encode_session_seen(stdout: int, stderr: int) -> bytes:
    """What has been shown: offsets in the two logs."""
    payload = encode_fields([(wire.SEEN_STDOUT_OFFSET, stdout), (wire.SEEN_STDERR_OFFSET, stderr)])
    return encode_frame(wire.FRAME_SESSION_SEEN, payload)


def encode_session_detach() -> bytes:
    return encode_frame(wire.FRAME_SESSION_DETACH)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _id(session_id: str) -> tuple[int, str]:
    if not is_session_id(session_id):
        raise WireError("no session id")
    return wire.SESSION_ID, session_id


def _request(frame: int, session_id: str | None = None, *more: tuple[int, int]) -> bytes:
    fields: list[tuple[int, bytes | str | int]] = []
    if session_id is not None:
        fields.append(_id(session_id))
    return encode_frame(frame, encode_fields([*fields, *more]))
