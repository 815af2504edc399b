"""What a guest's network looks like from inside, and one attempt to reach somebody from there.

Used by vm/netwhy.py. Sockets, routes and files are the guest's, asked of its agent; what comes is a hostile
guest's word: bounded, addresses parsed, names made printable. Nothing is left after a crash.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
from collections.abc import Awaitable, Callable
from typing import TypeVar

from banger.errors import BangerError, ErrorCode
from banger.guest import wire
from banger.guest.connection import FrameStream, open_connection
from banger.guest.errors import GuestTimeout, GuestUnreachable
from banger.guest.stream import refusal
from banger.guest.wire import Fields, WireError
from banger.model.netwhy import Flow, GuestLink, GuestNetwork, GuestRoute, Outcome

T = TypeVar("T")
FEATURE = "probe"
MOST_LINKS = 16
MOST_TEXT = 32768
MOST_FRAMES = 256
MOST_ROUTES = 128
MOST_NAMES = 1024
MOST_SERVERS = 3
"""glibc and musl ask no more than three."""
MOST_SEARCH = 6
_IFF_UP, _IFF_RUNNING, _RTF_UP, _RTF_GATEWAY = 0x1, 0x40, 0x1, 0x2
_SLACK_S = 3.0


async def attempt(vm_dir: str, flow: Flow, *, data: bytes = b"", timeout_s: float) -> Outcome:
    """One try from inside the guest: a TCP connection, a UDP exchange (data out, first answer in) or an echo.

    Raises GuestUnreachable, GuestTimeout or AgentRefused, for what the agent does; what the network does
    is the outcome.
    """
    payload = wire.encode_fields(
        [
            (wire.PROBE_KIND, flow.protocol.value),
            (wire.PROBE_ADDRESS, flow.target),
            (wire.PROBE_PORT, flow.port),
            (wire.PROBE_SOURCE, flow.source),
            (wire.PROBE_TIMEOUT_MS, int(timeout_s * 1000)),
            (wire.PROBE_DATA, data),
        ]
    )

    async def ask(stream: FrameStream) -> Outcome:
        await stream.write(wire.encode_frame(wire.FRAME_PROBE, payload))
        frame = await stream.read()
        if frame is not None and frame.type == wire.FRAME_ERROR:
            raise refusal(frame.payload)
        if frame is None or frame.type != wire.FRAME_OK:
            raise WireError("the agent does not answer the probe")
        return parse_outcome(frame.payload)

    return await _with_agent(vm_dir, ask, timeout_s=timeout_s + _SLACK_S)


async def look(vm_dir: str, *, timeout_s: float) -> GuestNetwork:
    """Raises likewise."""

    async def ask(stream: FrameStream) -> GuestNetwork:
        await stream.write(wire.encode_frame(wire.FRAME_NETWORK))
        links: list[GuestLink] = []
        texts: dict[str, bytes] = {}
        for _ in range(MOST_FRAMES):
            frame = await stream.read()
            if frame is not None and frame.type == wire.FRAME_ERROR:
                raise refusal(frame.payload)
            if frame is not None and frame.type == wire.FRAME_OK:
                return network_of(links, texts)
            if frame is not None and frame.type == wire.FRAME_NETWORK_LINK and len(links) < MOST_LINKS:
                links.append(parse_link(frame.payload))
            elif frame is not None and frame.type == wire.FRAME_NETWORK_TEXT:
                fields = Fields(frame.payload)
                kind = fields.text(wire.TEXT_KIND, most=16)
                if kind in ("routes", "resolver", "hosts"):
                    texts[kind] = (texts.get(kind, b"") + fields.data(wire.TEXT_BYTES))[:MOST_TEXT]
            else:
                break
        raise WireError("the agent does not end what it says of the network")

    return await _with_agent(vm_dir, ask, timeout_s=timeout_s)


async def _with_agent(vm_dir: str, ask: Callable[[FrameStream], Awaitable[T]], *, timeout_s: float) -> T:
    try:
        async with asyncio.timeout(timeout_s):
            stream, hello = await open_connection(vm_dir, timeout_s=timeout_s)
            try:
                if FEATURE not in hello.features:
                    raise BangerError(
                        ErrorCode.GUEST_ERROR,
                        "the guest was started by an older banger, whose agent cannot try the network",
                        hint="restart the VM: banger vm restart NAME",
                    )
                return await ask(stream)
            finally:
                await stream.aclose()
    except TimeoutError as error:
        raise GuestTimeout("say how its network is", timeout_s) from error
    except (OSError, WireError) as error:
        raise GuestUnreachable("the guest's agent went away", details=repr(error)) from error


def parse_outcome(payload: bytes) -> Outcome:
    """Raises WireError."""
    fields = Fields(payload)
    number = fields.number(wire.PROBE_ERRNO)
    error = errno.errorcode.get(number, f"errno {min(number, 9999)}") if number else ""
    took = min(fields.number(wire.PROBE_MICROSECONDS), 60_000_000) / 1000
    return Outcome(error=error, milliseconds=round(took, 2), answer=fields.data(wire.PROBE_ANSWER)[:4096])


def parse_link(payload: bytes) -> GuestLink:
    """Raises WireError."""
    fields = Fields(payload)
    flags = fields.number(wire.LINK_FLAGS)
    return GuestLink(
        name=fields.text(wire.LINK_NAME, most=16),
        up=bool(flags & _IFF_UP),
        running=bool(flags & _IFF_RUNNING),
        address=_ipv4(fields.text(wire.LINK_ADDRESS, most=16)),
        netmask=_ipv4(fields.text(wire.LINK_NETMASK, most=16)),
    )


def network_of(links: list[GuestLink], texts: dict[str, bytes]) -> GuestNetwork:
    """texts: the guest's /proc/net/route, resolv.conf and hosts. Lines that make no sense are left out."""
    servers, search = parse_resolver(texts.get("resolver", b""))
    return GuestNetwork(
        links=tuple(links),
        routes=parse_routes(texts.get("routes", b"")),
        nameservers=servers,
        search=search,
        hosts=parse_hosts(texts.get("hosts", b"")),
    )


def parse_routes(text: bytes) -> tuple[GuestRoute, ...]:
    found: list[GuestRoute] = []
    for line in _lines(text)[1:]:
        words = line.split()
        if len(words) < 8 or len(found) == MOST_ROUTES:
            continue
        try:
            target, gateway, flags, metric = (int(words[at], 16 if at != 6 else 10) for at in (1, 2, 3, 6))
            mask = int(words[7], 16)
            network = ipaddress.IPv4Network(f"{_swapped(target)}/{_swapped(mask)}")
            via = str(_swapped(gateway)) if flags & _RTF_GATEWAY else ""
        except (ValueError, OverflowError):
            continue
        if flags & _RTF_UP:
            found.append(
                GuestRoute(link=words[0][:16], network=str(network), gateway=via, metric=metric & 0xFFFFFFFF)
            )
    return tuple(found)


def parse_resolver(text: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(nameservers, search domains)"""
    servers: list[str] = []
    search: list[str] = []
    for line in _lines(text):
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                servers.append(str(ipaddress.ip_address(words[1][:64].partition("%")[0])))
            except ValueError:
                continue
        elif words and words[0] in ("search", "domain"):
            search = [word[:253].rstrip(".") for word in words[1 : 1 + MOST_SEARCH]]
    return tuple(servers[:MOST_SERVERS]), tuple(word for word in search if word)


def parse_hosts(text: bytes) -> dict[str, str]:
    """IPv4 addresses by name; the first of a name counts, as in libc."""
    found: dict[str, str] = {}
    for line in _lines(text):
        words = line.partition("#")[0].split()
        if len(words) < 2 or not (address := _ipv4(words[0])):
            continue
        for name in words[1:]:
            if len(found) < MOST_NAMES and len(name) <= 253:
                found.setdefault(name.lower().rstrip("."), address)
    return found


def _lines(text: bytes) -> list[str]:
    """Printable ones, without what is not."""
    decoded = text[:MOST_TEXT].decode("utf-8", "replace").expandtabs(1)
    return [
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
        for line in decoded.split("\n")
    ]


def _swapped(number: int) -> ipaddress.IPv4Address:
    """The kernel prints addresses as numbers of its own byte order; guests are little-endian."""
    return ipaddress.IPv4Address(number.to_bytes(4, "little"))


def _ipv4(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        return ""
