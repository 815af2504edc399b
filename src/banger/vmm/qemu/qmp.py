"""The client of QEMU's control socket: QMP, one JSON object a line.

One connection per machine (QEMU serves one at a time), commands one after the other, events noted as
they come. Used by qemu/machine only. After a crash of the daemon QEMU listens again for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping

import msgspec

from banger.errors import ErrorCode
from banger.system.unix import unix_address
from banger.vmm.errors import MonitorError
from banger.vmm.protocol import API_SOCKET

TIMEOUT_S = 5.0
_LINE_LIMIT = 256 << 10
_EVENTS_BEFORE_REPLY = 1000


_NOTHING = msgspec.Raw(b"")


class _Error(msgspec.Struct):
    desc: str = ""


class _Message(msgspec.Struct):
    """Any line of QMP: greeting, reply, error or event."""

    greeting: msgspec.Raw = msgspec.field(default=_NOTHING, name="QMP")
    result: msgspec.Raw = msgspec.field(default=_NOTHING, name="return")
    error: _Error | None = None
    event: str = ""
    data: msgspec.Raw = _NOTHING
    id: int | None = None


class ShutdownData(msgspec.Struct):
    """Of the event SHUTDOWN. reason: "guest-shutdown", "guest-reset", "guest-panic", "host-signal", …"""

    guest: bool = False
    reason: str = ""


class _Status(msgspec.Struct):
    status: str


class Qmp:
    """vm_dir: absolute. `shutdown` holds the event's data once QEMU has said why it ends."""

    def __init__(self, vm_dir: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._vm_dir = vm_dir
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._dropped: asyncio.StreamWriter | None = None
        self._last_id = 0
        self.shutdown: ShutdownData | None = None

    async def connect(self) -> None:
        """Raises OSError while nobody listens yet, MonitorError when what listens is no QMP."""
        async with self._lock:
            await self._guarded("the greeting", self._ensure())

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> bytes:
        """The JSON of what it returned."""
        async with self._lock:
            await self._guarded(command, self._ensure())
            return await self._guarded(command, self._command(command, arguments))

    async def status(self) -> str:
        """QEMU's run state: "prelaunch", "running", "paused", …"""
        return msgspec.json.decode(await self.execute("query-status"), type=_Status).status

    async def drain(self) -> None:
        """Read what QEMU said before it ended; for SHUTDOWN. Never fails."""
        async with self._lock:
            if self._streams is None:
                return
            try:
                async with asyncio.timeout(1.0):
                    while True:
                        await self._read()
            except (TimeoutError, EOFError, OSError, ValueError):
                self._drop()

    async def close(self) -> None:
        async with self._lock:
            self._drop()
            if self._dropped is not None:
                with contextlib.suppress(OSError):
                    await self._dropped.wait_closed()
                self._dropped = None

    def _drop(self) -> None:
        if self._streams is not None:
            self._dropped = self._streams[1]
            self._dropped.transport.abort()
            self._streams = None

    async def _ensure(self) -> bytes:
        if self._streams is not None:
            return b""
        with unix_address(f"{self._vm_dir}/{API_SOCKET}") as address:
            self._streams = await asyncio.open_unix_connection(address, limit=_LINE_LIMIT)
        if (await self._read()).greeting == _NOTHING:
            raise ValueError("no QMP greeting")
        return await self._command("qmp_capabilities", None)

    async def _guarded(self, what: str, exchange: Coroutine[object, object, bytes]) -> bytes:
        clean = False
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await exchange
            clean = True
            return reply
        except MonitorError:
            clean = True
            raise
        except TimeoutError:
            raise MonitorError(
                f"QEMU did not answer {what} within {self._timeout_s:g} s", call=what, code=ErrorCode.TIMEOUT
            ) from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise
        except (OSError, EOFError) as error:
            why = "it closed the connection" if isinstance(error, EOFError) else str(error)
            raise MonitorError(f"QEMU did not answer {what}: {why}", call=what) from None
        except ValueError as error:
            raise MonitorError(f"QEMU's answer to {what} makes no sense: {error}", call=what) from None
        finally:
            if not clean:
                self._drop()

    async def _command(self, command: str, arguments: Mapping[str, object] | None) -> bytes:
        assert self._streams is not None
        self._last_id += 1
        request: dict[str, object] = {"execute": command, "id": self._last_id}
        if arguments:
            request["arguments"] = arguments
        writer = self._streams[1]
        writer.write(msgspec.json.encode(request) + b"\n")
        await writer.drain()
        for _ in range(_EVENTS_BEFORE_REPLY):
            message = await self._read()
            if message.id != self._last_id:
                continue
            if message.error is not None:
                fault = " ".join(message.error.desc.split())[:500]
                raise MonitorError(f"QEMU refused {command}: {fault}", call=command, fault=fault)
            if message.result != _NOTHING:
                return bytes(message.result)
        raise ValueError("too many messages before the reply")

    async def _read(self) -> _Message:
        assert self._streams is not None
        # readuntil, not readline: an over-long line must be an error, not be cut
        try:
            line = await self._streams[0].readuntil(b"\n")
        except asyncio.LimitOverrunError as error:
            raise ValueError(str(error)) from None
        message = msgspec.json.decode(line, type=_Message)
        if message.event == "SHUTDOWN" and message.data != _NOTHING:
            self.shutdown = msgspec.json.decode(message.data, type=ShutdownData)
        return message
