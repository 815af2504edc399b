"""The client of Firecracker's API: HTTP/1.1 with JSON bodies over a Unix socket.

One persistent connection per machine, one request at a time (Firecracker answers one at a time and
accepts ten connections at most). A tiny client of our own: ten calls by aiohttp cost several
milliseconds of a start that aims at fifteen. Used by firecracker/machine only. After a crash of the
daemon the connection is gone and nothing else; the next daemon connects afresh.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import msgspec

from banger.errors import ErrorCode
from banger.model.deadlines import USUAL
from banger.system.unix import unix_address
from banger.vmm.errors import MonitorError
from banger.vmm.protocol import API_SOCKET

_HEAD_LIMIT = 16 << 10
_BODY_LIMIT = 1 << 20
_OK, _NO_CONTENT = 200, 204
"""Of a GET and of a change that was made; the API definition knows no other."""

Json = str | int | bool | None | Mapping[str, "Json"] | list["Json"]


class _Fault(msgspec.Struct):
    fault_message: str = ""
    error: str = ""


class InstanceInfo(msgspec.Struct):
    """What `GET /` says. state: "Not started", "Running" or "Paused"."""

    id: str
    state: str
    vmm_version: str
    app_name: str


class FirecrackerApi:
    """vm_dir: absolute. Connects on first use; a path of any length will do."""

    def __init__(self, vm_dir: str, *, timeout_s: float = USUAL.monitor_call_s) -> None:
        self._vm_dir = vm_dir
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._dropped: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        """Open the connection now. Raises OSError while nobody listens yet."""
        async with self._lock:
            if self._streams is None:
                self._streams = await self._open()

    async def put(self, path: str, body: Mapping[str, Json]) -> None:
        await self._request("PUT", path, body=body, done=_NO_CONTENT)

    async def patch(self, path: str, body: Mapping[str, Json]) -> None:
        await self._request("PATCH", path, body=body, done=_NO_CONTENT)

    async def instance(self) -> InstanceInfo:
        reply = await self._request("GET", "/")
        try:
            return msgspec.json.decode(reply, type=InstanceInfo)
        except msgspec.DecodeError as error:
            raise MonitorError(
                f"Firecracker's answer to GET / makes no sense: {error}", call="GET /"
            ) from None

    async def close(self) -> None:
        async with self._lock:
            self._drop()
            if self._dropped is not None:
                with contextlib.suppress(OSError):
                    await self._dropped.wait_closed()
                self._dropped = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with unix_address(f"{self._vm_dir}/{API_SOCKET}") as address:
            return await asyncio.open_unix_connection(address, limit=_HEAD_LIMIT)

    def _drop(self) -> None:
        if self._streams is not None:
            self._dropped = self._streams[1]
            self._dropped.transport.abort()
            self._streams = None

    async def _request(
        self, method: str, path: str, *, body: Mapping[str, Json] | None = None, done: int = _OK
    ) -> bytes:
        """The body of an answer with the status `done`. Whatever else happens, a half-used connection is
        not used again."""
        call = f"{method} {path}"
        payload = b"" if body is None else msgspec.json.encode(body)
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
        async with self._lock:
            clean = False
            try:
                async with asyncio.timeout(self._timeout_s):
                    status, reply = await self._exchange(f"{head}\r\n".encode() + payload)
                    if 200 <= status < 300 and status != done:
                        raise ValueError(f"status {status}")
                clean = True
            except TimeoutError:
                raise MonitorError(
                    f"Firecracker did not answer {call} within {self._timeout_s:g} s",
                    call=call,
                    code=ErrorCode.TIMEOUT,
                ) from None
            except (OSError, EOFError, asyncio.LimitOverrunError) as error:
                what = str(error) or "the connection ended"
                if isinstance(error, EOFError):
                    what = "it closed the connection"
                raise MonitorError(f"Firecracker did not answer {call}: {what}", call=call) from None
            except ValueError as error:
                raise MonitorError(
                    f"Firecracker's answer to {call} makes no sense: {error}", call=call
                ) from None
            finally:
                if not clean:
                    self._drop()
        if not 200 <= status < 300:
            fault = _fault_of(reply)
            raise MonitorError(
                f"Firecracker refused {call} ({status})" + (f": {fault}" if fault else ""),
                call=call,
                fault=fault,
            )
        return reply

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        if self._streams is not None and self._streams[0].at_eof():
            self._drop()
        if self._streams is None:
            self._streams = await self._open()
        reader, writer = self._streams
        writer.write(request)
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        protocol, _, rest = lines[0].partition(b" ")
        code = rest[:3]
        if protocol != b"HTTP/1.1" or not code.isdigit() or len(code) != 3:
            raise ValueError(f"status line {lines[0][:60]!r}")
        length, last = _framing(lines[1:])
        reply = await reader.readexactly(length)
        if last:
            self._drop()
        return int(code), reply


def _framing(headers: list[bytes]) -> tuple[int, bool]:
    """(length of the body, whether the connection ends with it)."""
    length, last = 0, False
    for line in headers:
        name, _, value = line.partition(b":")
        match name.strip().lower():
            case b"content-length":
                text = value.strip()
                if not text.isdigit() or len(text) > 9 or int(text) > _BODY_LIMIT:
                    raise ValueError(f"content length {text[:20]!r}")
                length = int(text)
            case b"connection":
                last = value.strip().lower() == b"close"
            case b"transfer-encoding":
                raise ValueError("a chunked body")
    return length, last


def _fault_of(reply: bytes) -> str:
    """Firecracker's own words on one line: `fault_message`, or `error` where its HTTP reader refused.

    The latter is no valid JSON (it has a bare line break), so what does not decode is shown as it is.
    """
    try:
        fault = msgspec.json.decode(reply, type=_Fault)
        text = fault.fault_message or fault.error
    except msgspec.DecodeError:
        text = reply.decode("utf-8", "replace")
    return " ".join(text.split())[:500].rstrip(".")
