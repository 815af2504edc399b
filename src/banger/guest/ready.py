"""ReadyListener: where a guest's agent calls first (READY) and last (ENDING): VM_DIR/v.sock_1025.

Owned by the VM's lifecycle: started before the machine is, closed when it is gone. The guest is hostile:
few calls at a time, each short and with a deadline, one frame each; and what it says is a hint: any
process of root in the guest can say it. After a crash the socket's file stays and `start` replaces it; the
agent repeats READY until somebody acknowledges, so a daemon that was restarted in mid-boot hears it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from banger.guest import wire
from banger.guest.connection import FrameStream, Hello, parse_hello
from banger.guest.wire import Fields, WireError
from banger.system import unix

SOCKET = f"v.sock_{wire.WIRE_HOST_PORT}"
MAX_CALLS = 8
CALL_TIMEOUT_S = 5.0
PAUSE_S = 0.1
"""Out of descriptors: accepting would fail again at once."""
KINDS = frozenset({"poweroff", "reboot", "halt", "failed"})

log = logging.getLogger(__name__)

OnEnding = Callable[[str, str], None]
"""(kind, message): poweroff, reboot, halt, or failed with the agent's reason. Must not block."""


class ReadyListener:
    """ready: what the agent said of itself, None before. ending: "" or the kind; ending_message: why."""

    def __init__(self, vm_dir: str, *, on_ending: OnEnding | None = None) -> None:
        self._vm_dir = vm_dir
        self._path = f"{vm_dir}/{SOCKET}"
        self._on_ending = on_ending
        self._listener: socket.socket | None = None
        self._calls: dict[asyncio.Task[None], socket.socket] = {}
        self._pause: asyncio.TimerHandle | None = None
        self._ready_news = asyncio.Event()
        self.ready: Hello | None = None
        self.ending = ""
        self.ending_message = ""

    async def start(self) -> None:
        """Bind and accept. Raises OSError."""
        if self._listener is not None:
            return
        self._listener = unix.bind_listener(self._path, replace=True)
        self._listen()

    async def wait_ready(self) -> Hello:
        """What the agent says of itself, once it serves. The deadline is the caller's."""
        while self.ready is None:
            await self._ready_news.wait()
        return self.ready

    async def aclose(self) -> None:
        """Stop, and remove the socket. Idempotent."""
        listener, self._listener = self._listener, None
        if self._pause is not None:
            self._pause.cancel()
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
            try:
                unix.remove_socket(self._path)
            except OSError as error:  # the VM's folder may be gone with it
                log.debug("cannot remove %s: %s", self._path, error)
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        """One call. Not loop.sock_accept: cancelled at the wrong moment, that loses an accepted socket."""
        loop = asyncio.get_running_loop()
        try:
            connected, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("%s: cannot accept: %s", self._path, error)
            loop.remove_reader(listener)
            self._pause = loop.call_later(PAUSE_S, self._listen)
            return
        connected.setblocking(False)
        call = asyncio.create_task(self._answer(connected), name="guest's call")
        self._calls[call] = connected
        call.add_done_callback(self._hung_up)
        if len(self._calls) >= MAX_CALLS:
            loop.remove_reader(listener)

    def _hung_up(self, call: asyncio.Task[None]) -> None:
        self._calls.pop(call).close()  # a call that was cancelled before it began has not done so
        self._listen()

    async def _answer(self, connected: socket.socket) -> None:
        try:
            stream = await FrameStream.over(connected)
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    frame = await stream.read()
                    if frame is not None and self._take(frame):
                        await stream.write(wire.encode_frame(wire.FRAME_ACK))
                        await stream.reader.read(1)  # the caller closes first: nothing sent is lost
            finally:
                await stream.aclose()
        except (OSError, TimeoutError, WireError) as error:
            log.debug("%s: a call failed: %r", self._path, error)

    def _take(self, frame: wire.Frame) -> bool:
        if frame.type == wire.FRAME_READY:
            self.ready = parse_hello(frame.payload)
            self._ready_news.set()
            return True
        if frame.type != wire.FRAME_ENDING:
            raise WireError(f"a frame of type {frame.type:#x} where READY or ENDING belongs")
        fields = Fields(frame.payload)
        kind = fields.text(wire.ENDING_KIND, most=16)
        if kind not in KINDS:
            raise WireError("an ending of no known kind")
        self.ending, self.ending_message = kind, fields.text(wire.ENDING_MESSAGE, most=512)
        if self._on_ending is not None:
            self._on_ending(self.ending, self.ending_message)
        return True
