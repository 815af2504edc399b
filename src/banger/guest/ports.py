"""Who listens in a guest, as its agent reads it out of the guest's /proc.

Used by vm/. What comes is a hostile guest's word: at most WIRE_MAX_PORTS listeners, each field bounded,
addresses parsed, names made printable. Nothing is left after a crash.
"""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass

from banger.guest import wire
from banger.guest.connection import open_connection
from banger.guest.errors import GuestTimeout, GuestUnreachable
from banger.guest.stream import refusal
from banger.guest.wire import Fields, WireError

PROTOCOLS = ("tcp", "udp")


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that waits in the guest. pid 0 and process "": not found (a kernel's, or no time to look)."""

    protocol: str  # tcp or udp
    address: str  # canonical IPv4 or IPv6; 0.0.0.0 and :: are all of the guest's
    port: int
    uid: int
    pid: int = 0
    process: str = ""  # the kernel's short name of it


@dataclass(frozen=True, slots=True)
class Listeners:
    """left_out: how many more there are than the agent tells."""

    listeners: tuple[Listener, ...]
    left_out: int = 0


def parse_listener(payload: bytes) -> Listener:
    """Raises WireError."""
    fields = Fields(payload)
    protocol, port = fields.text(wire.PORT_PROTOCOL, most=8), fields.number(wire.PORT_NUMBER)
    try:
        address = ipaddress.ip_address(fields.text(wire.PORT_ADDRESS, most=64))
    except ValueError as error:
        raise WireError("a listener's address is none") from error
    if protocol not in PROTOCOLS or not 0 < port < 1 << 16:
        raise WireError("a listener without protocol or port")
    return Listener(
        protocol=protocol,
        address=str(address),
        port=port,
        uid=fields.number(wire.PORT_UID) & 0xFFFFFFFF,
        pid=min(fields.number(wire.PORT_PID), (1 << 31) - 1),
        process=fields.text(wire.PORT_PROCESS, most=64),
    )


async def ask_listeners(vm_dir: str, *, timeout_s: float) -> Listeners:
    """Each once, by port. Raises GuestUnreachable, GuestTimeout or AgentRefused."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(vm_dir, timeout_s)
    except TimeoutError as error:
        raise GuestTimeout("say who listens", timeout_s) from error
    except (OSError, WireError) as error:
        raise GuestUnreachable("the guest's agent went away", details=repr(error)) from error


async def _ask(vm_dir: str, timeout_s: float) -> Listeners:
    stream, _ = await open_connection(vm_dir, timeout_s=timeout_s)
    found: set[Listener] = set()
    try:
        await stream.write(wire.encode_frame(wire.FRAME_PORTS))
        for _ in range(wire.WIRE_MAX_PORTS + 1):
            frame = await stream.read()
            if frame is None:
                break
            if frame.type == wire.FRAME_ERROR:
                raise refusal(frame.payload)
            if frame.type == wire.FRAME_OK:
                left_out = min(Fields(frame.payload).number(wire.PORTS_LEFT_OUT), 1 << 31)
                return Listeners(tuple(sorted(found, key=_order)), left_out)
            if frame.type != wire.FRAME_PORT:
                break
            found.add(parse_listener(frame.payload))
        raise WireError("the agent does not end its list of listeners")
    finally:
        await stream.aclose()


def _order(listener: Listener) -> tuple[int, str, bool, str, int]:
    return listener.port, listener.protocol, ":" in listener.address, listener.address, listener.pid
