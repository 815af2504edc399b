"""The agent's protocol: frames, fields, constants (ARCHITECTURE.md, "The agent's protocol").

Pure bytes, no I/O; imports only struct, so that the CLI's own client may use it. The constants are those of
agent/src/wire.h, name by name; a test compares the two. What comes from a guest is hostile: every length is
checked before it is used, and WireError is all that malformed bytes can cause.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

WIRE_VERSION = 1
WIRE_AGENT_PORT = 1024
WIRE_HOST_PORT = 1025
WIRE_HOST_CID = 2

WIRE_HEADER_BYTES = 5
WIRE_FIELD_HEADER_BYTES = 5
WIRE_MAX_PAYLOAD = 65536
WIRE_MAX_EXEC_PAYLOAD = 1048576
WIRE_STDIN_WINDOW = 262144
WIRE_MAX_ARGUMENTS = 4096

FRAME_HELLO = 0x01
FRAME_ERROR = 0x02
FRAME_OK = 0x03
FRAME_HEALTH = 0x10
FRAME_EXEC = 0x11
FRAME_SHUTDOWN = 0x12
FRAME_SYNC = 0x13
FRAME_TIME = 0x14
FRAME_PORTS = 0x15
FRAME_PORT = 0x16
FRAME_FORWARD = 0x18
FRAME_FORWARD_DATA = 0x19
FRAME_PROBE = 0x1A
FRAME_NETWORK = 0x1B
FRAME_NETWORK_LINK = 0x1C
FRAME_NETWORK_TEXT = 0x1D
FRAME_STDIN = 0x20
FRAME_STDOUT = 0x21
FRAME_STDERR = 0x22
FRAME_EXIT = 0x23
FRAME_RESIZE = 0x24
FRAME_SIGNAL = 0x25
FRAME_STARTED = 0x26
FRAME_WINDOW = 0x27
FRAME_READY = 0x30
FRAME_ACK = 0x31
FRAME_ENDING = 0x32

HELLO_VERSION = 1
HELLO_FEATURES = 2
HELLO_AGENT = 3
HELLO_BOOT_ID = 4

ERROR_CODE = 1
ERROR_MESSAGE = 2
ERROR_ERRNO = 3

HEALTH_UPTIME_S = 1
HEALTH_PHASE = 2
HEALTH_INIT = 3
HEALTH_LOAD1_X100 = 4
HEALTH_MEMORY_TOTAL_KIB = 5
HEALTH_MEMORY_AVAILABLE_KIB = 6
HEALTH_ROOT_TOTAL_BYTES = 7
HEALTH_ROOT_FREE_BYTES = 8
HEALTH_WORK_TOTAL_BYTES = 9
HEALTH_WORK_FREE_BYTES = 10
HEALTH_RUNNING_SESSIONS = 11

EXEC_ARGUMENT = 1
EXEC_ENV = 2
EXEC_CWD = 3
EXEC_USER = 4
EXEC_FLAGS = 5
EXEC_ROWS = 6
EXEC_COLS = 7
EXEC_FLAG_TERMINAL = 1
EXEC_FLAG_STDIN = 2
EXEC_FLAG_DETACH = 4

SHUTDOWN_KIND = 1
TIME_NANOSECONDS = 1
EXIT_CODE = 1
EXIT_SIGNAL = 2
RESIZE_ROWS = 1
RESIZE_COLS = 2
SIGNAL_NUMBER = 1
STARTED_PID = 1
WINDOW_BYTES = 1
ENDING_KIND = 1
ENDING_MESSAGE = 2

PORT_PROTOCOL = 1
PORT_ADDRESS = 2
PORT_NUMBER = 3
PORT_PID = 4
PORT_PROCESS = 5
PORT_UID = 6
PORTS_LEFT_OUT = 1
WIRE_MAX_PORTS = 512

FORWARD_PORT = 1
FORWARD_ADDRESS = 2
FORWARD_FLAGS = 3
FORWARD_FLAG_FRAMES = 1

PROBE_KIND = 1
PROBE_ADDRESS = 2
PROBE_PORT = 3
PROBE_SOURCE = 4
PROBE_TIMEOUT_MS = 5
PROBE_DATA = 6
PROBE_ERRNO = 1
PROBE_MICROSECONDS = 2
PROBE_ANSWER = 3
LINK_NAME = 1
LINK_FLAGS = 2
LINK_ADDRESS = 3
LINK_NETMASK = 4
TEXT_KIND = 1
TEXT_BYTES = 2

WIRE_MAX_SESSIONS = 1024
WIRE_MAX_RUNNING_SESSIONS = 64
WIRE_MAX_SESSION_TAGS = 64
WIRE_MAX_SESSION_TAG = 255
WIRE_MAX_SESSION_NAME = 63

FRAME_SESSION_START = 0x40
FRAME_SESSION_LIST = 0x41
FRAME_SESSION_ATTACH = 0x42
FRAME_SESSION_SIGNAL = 0x43
FRAME_SESSION_STOP = 0x44
FRAME_SESSION_LOGS = 0x45
FRAME_SESSION_REMOVE = 0x46
FRAME_SESSION_SEND = 0x47
FRAME_SESSION = 0x48
FRAME_SESSION_SEEN = 0x49
FRAME_SESSION_DETACH = 0x4A

SESSION_ID = 1
SESSION_NAME = 2
SESSION_FLAGS = 3
SESSION_ARGUMENT = 4
SESSION_ENV = 5
SESSION_CWD = 6
SESSION_USER = 7
SESSION_TAG = 8
SESSION_ROWS = 9
SESSION_COLS = 10
SESSION_NUMBER = 11
SESSION_GRACE_MS = 12
SESSION_TAIL_LINES = 13
SESSION_STATUS = 14
SESSION_PID = 15
SESSION_EXIT_CODE = 16
SESSION_EXIT_SIGNAL = 17
SESSION_CREATED = 18
SESSION_STARTED = 19
SESSION_UPDATED = 20
SESSION_ENDED = 21
SESSION_STATE_DIR = 22
SESSION_LAST_ERROR = 23
SESSION_LAUNCH_STAGE = 24
SESSION_LAUNCH_MESSAGE = 25
SESSION_STDOUT_BYTES = 26
SESSION_STDERR_BYTES = 27
SESSION_READERS = 28
SESSION_WRITER = 29
SESSION_KEEPER_PID = 30
SESSION_LEFT_OUT = 31
SESSION_BOOT_ID = 32

SESSION_FLAG_TERMINAL = 1
SESSION_FLAG_STDIN = 2
SESSION_ATTACH_WRITE = 1
SESSION_ATTACH_NOW = 2
SESSION_ATTACH_ALL = 4
SESSION_LOGS_FOLLOW = 1
SESSION_LOGS_STDOUT = 2
SESSION_LOGS_STDERR = 4
SESSION_REMOVE_FORCE = 1
SESSION_SEND_END = 1

STARTED_FLAGS = 2
STARTED_STDOUT_OFFSET = 3
STARTED_STDERR_OFFSET = 4
STARTED_FLAG_WRITER = 1
STARTED_FLAG_STDIN = 2
SEEN_STDOUT_OFFSET = 1
SEEN_STDERR_OFFSET = 2

WIRE_MAX_COPY_PAYLOAD = 262144

FRAME_COPY_IN = 0x50
FRAME_COPY_OUT = 0x51
FRAME_COPY_STARTED = 0x52
FRAME_COPY_DATA = 0x53
FRAME_COPY_END = 0x54
FRAME_COPY_NOTE = 0x55

COPY_PATH = 1
COPY_NAME = 2
COPY_FLAGS = 3
COPY_FLAG_OWNERS = 1
COPY_FLAG_FOLDER = 2
COPY_FLAG_CONTENTS = 4
COPY_FLAG_ARCHIVE = 8
COPY_FLAG_FOLLOW = 16
COPY_FLAG_EXACT_TIMES = 32
COPY_FLAG_REPLACE = 64
COPY_STARTED_MODE = 1
COPY_DONE_ENTRIES = 1
COPY_NOTE_MESSAGE = 1

_HEADER = struct.Struct("<IB")
_FIELD = struct.Struct("<BI")
_NUMBER = struct.Struct("<Q")
_MAX_ANSWER = 32


class WireError(Exception):
    """Bytes that are not this protocol, or a request that does not fit into it."""


class Frame(NamedTuple):
    type: int
    payload: bytes


def connect_line(port: int) -> bytes:
    """What one says first at a monitor's v.sock. Nothing may follow it before the answer: QEMU's bridge
    loses it."""
    return f"CONNECT {port}\n".encode()


def connected(answer: bytes) -> bool:
    """Whether the monitor's answer, `OK <n>\\n`, is whole. Raises WireError where it is another."""
    if not answer.endswith(b"\n") and len(answer) < _MAX_ANSWER:
        return False
    if not (answer.endswith(b"\n") and answer.startswith(b"OK ")):
        raise WireError(f"the monitor answers {answer[:_MAX_ANSWER]!r}")
    return True


def frame_limit(frame_type: int) -> int:
    """The longest payload that a frame of this type may have, in bytes."""
    return WIRE_MAX_EXEC_PAYLOAD if frame_type in (FRAME_EXEC, FRAME_SESSION_START) else WIRE_MAX_PAYLOAD


def encode_frame(frame_type: int, payload: bytes = b"") -> bytes:
    if len(payload) > frame_limit(frame_type):
        raise WireError(f"a payload of {len(payload)} bytes is too long for a frame")
    return _HEADER.pack(len(payload), frame_type) + payload


def decode_header(header: bytes) -> tuple[int, int]:
    """(payload length, type) of WIRE_HEADER_BYTES bytes. Raises WireError when it is over the limit."""
    length, frame_type = _HEADER.unpack(header)
    if length > frame_limit(frame_type):
        raise WireError(f"a frame of type {frame_type:#x} announces {length} bytes")
    return length, frame_type


class FrameReader:
    """Bytes in, frames out; for readers that get bytes in pieces of any size. Holds less than one frame."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. Raises WireError at a length over the limit; then it is spent."""
        held = self._held
        held += data
        frames: list[Frame] = []
        at = 0
        while len(held) - at >= WIRE_HEADER_BYTES:
            length, frame_type = decode_header(bytes(held[at : at + WIRE_HEADER_BYTES]))
            end = at + WIRE_HEADER_BYTES + length
            if len(held) < end:
                break
            frames.append(Frame(frame_type, bytes(held[at + WIRE_HEADER_BYTES : end])))
            at = end
        del held[:at]
        return frames

    @property
    def is_empty(self) -> bool:
        """No part of a frame is held: the stream may end here."""
        return not self._held


def encode_fields(fields: Iterable[tuple[int, bytes | str | int]]) -> bytes:
    """Payload of (tag, value) pairs. Text as UTF-8 (surrogate escapes kept), numbers as u64."""
    parts: list[bytes] = []
    for tag, value in fields:
        if isinstance(value, int):
            if not 0 <= value < 1 << 64:
                raise WireError(f"{value} is no 64-bit number")
            data = _NUMBER.pack(value)
        elif isinstance(value, str):
            data = value.encode("utf-8", "surrogateescape")
        else:
            data = value
        parts.append(_FIELD.pack(tag, len(data)))
        parts.append(data)
    return b"".join(parts)


def decode_fields(payload: bytes) -> list[tuple[int, bytes]]:
    fields: list[tuple[int, bytes]] = []
    at = 0
    while at < len(payload):
        if len(payload) - at < WIRE_FIELD_HEADER_BYTES:
            raise WireError("a field's header is cut off")
        tag, length = _FIELD.unpack_from(payload, at)
        at += WIRE_FIELD_HEADER_BYTES
        if length > len(payload) - at:
            raise WireError("a field is cut off")
        fields.append((tag, payload[at : at + length]))
        at += length
    return fields


class Fields:
    """A payload's fields by tag; of a repeated one, the last. A missing one reads as "" or 0."""

    def __init__(self, payload: bytes) -> None:
        self._by_tag: Mapping[int, bytes] = dict(decode_fields(payload))

    def __contains__(self, tag: int) -> bool:
        return tag in self._by_tag

    def text(self, tag: int, *, most: int = 4096) -> str:
        """UTF-8, cut to `most` bytes, made printable: no control character of a guest reaches anybody."""
        text = self._by_tag.get(tag, b"")[:most].decode("utf-8", "replace")
        return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)

    def data(self, tag: int) -> bytes:
        return self._by_tag.get(tag, b"")

    def number(self, tag: int) -> int:
        data = self._by_tag.get(tag)
        if data is None:
            return 0
        if len(data) != _NUMBER.size:
            raise WireError(f"field {tag} is no number")
        value: int = _NUMBER.unpack(data)[0]
        return value


def encode_exec(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    cwd: str = "",
    user: str = "",
    terminal: bool = False,
    stdin: bool = False,
    detach: bool = False,
    rows: int = 0,
    cols: int = 0,
) -> bytes:
    """The whole EXEC frame. Raises WireError for what no command line can hold or what is too long."""
    if not argv:
        raise WireError("no command given")
    env = env or {}
    if len(argv) > WIRE_MAX_ARGUMENTS or len(env) > WIRE_MAX_ARGUMENTS:
        raise WireError(f"more than {WIRE_MAX_ARGUMENTS} arguments or variables")
    if any("\0" in text for text in (*argv, *env, *env.values(), cwd, user)):
        raise WireError("a NUL byte in an argument, a variable, the folder or the user")
    if any(not name or "=" in name for name in env):
        raise WireError("a variable without a name, or with = in it")
    flags = (EXEC_FLAG_TERMINAL if terminal else 0) | (EXEC_FLAG_STDIN if stdin else 0)
    flags |= EXEC_FLAG_DETACH if detach else 0
    fields: list[tuple[int, bytes | str | int]] = [(EXEC_ARGUMENT, argument) for argument in argv]
    fields += [(EXEC_ENV, f"{name}={value}") for name, value in env.items()]
    if cwd:
        fields.append((EXEC_CWD, cwd))
    if user:
        fields.append((EXEC_USER, user))
    fields += [(EXEC_FLAGS, flags), (EXEC_ROWS, rows), (EXEC_COLS, cols)]
    payload = encode_fields(fields)
    if len(payload) > WIRE_MAX_EXEC_PAYLOAD:
        raise WireError(f"command and environment are longer than {WIRE_MAX_EXEC_PAYLOAD} bytes")
    return encode_frame(FRAME_EXEC, payload)


def encode_stdin(data: bytes) -> bytes:
    """A STDIN frame; empty data is end of file. At most WIRE_MAX_PAYLOAD bytes."""
    return encode_frame(FRAME_STDIN, data)


def encode_resize(rows: int, cols: int) -> bytes:
    return encode_frame(FRAME_RESIZE, encode_fields([(RESIZE_ROWS, rows), (RESIZE_COLS, cols)]))


def encode_signal(number: int) -> bytes:
    return encode_frame(FRAME_SIGNAL, encode_fields([(SIGNAL_NUMBER, number)]))
