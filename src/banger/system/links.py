"""Network links through netlink: bridges, taps, their marks, addresses and routes. No `ip` programs.

`Links` keeps one netlink socket for the network namespace it was opened in; helper/ owns it. A tap lives
by its open descriptor until it has been marked and put on its bridge, and is made persistent only then:
a crash in between leaves none behind. A bridge is born with a MAC that its owner chooses, so that one
that a crash left unmarked can still be told from a stranger's. What was finished stays after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from banger.errors import ErrorCode
from banger.system import netlink
from banger.system.errors import KernelError

# <linux/if_tun.h>
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
# <linux/if.h>, <linux/rtnetlink.h>
_IFF_UP = 0x1
_RT_TABLE_LOCAL = 255
_RT_SCOPE_LINK = 253
_ADDR_GEN_MODE_NONE = 1


@dataclass(frozen=True, slots=True)
class Link:
    """kind: what the kernel calls it ("bridge", "tun"; "" for hardware). master: an index, 0 for none.
    carrier, of a tap: a process holds it open."""

    index: int
    name: str
    kind: str
    alias: str
    master: int
    mac: str
    up: bool
    carrier: bool


class _Message(Protocol):
    def get(self, key: str | tuple[str, ...], default: object = None) -> object: ...


_Ask = Callable[..., Awaitable[AsyncIterable[_Message]]]


class _Route(Protocol):
    """What of pyroute2's AsyncIPRoute is used here (the package has no types of its own)."""

    link: _Ask
    addr: _Ask
    route: _Ask

    def close(self) -> None: ...


class Links:
    """One netlink socket. Not for use from several event loops."""

    def __init__(self) -> None:
        self._route: _Route | None = None

    async def close(self) -> None:
        route, self._route = self._route, None
        if route is not None:
            route.close()

    def _open(self) -> _Route:
        if self._route is None:
            from pyroute2 import AsyncIPRoute  # 100 ms to import: only who touches links pays

            self._route = cast(_Route, AsyncIPRoute())
        return self._route

    async def _dump(self, what: str, ask: _Ask, **parameters: int) -> list[_Message]:
        """A whole listing."""
        with _explained(what):
            return [message async for message in await ask("dump", **parameters)]

    async def all(self) -> list[Link]:
        """Every link of this namespace."""
        with _explained("list the network links"):
            return [_link(message) for message in netlink.read_links()]

    async def get(self, name: str) -> Link | None:
        with _explained(f"look up the link {name}", missing_ok=True):
            return _link(netlink.read_link(name))
        return None

    def name_of(self, index: int) -> str:
        """A link's name by its index; "" when there is none."""
        try:
            return socket.if_indextoname(index) if index else ""
        except OSError:
            return ""

    async def create_bridge(self, name: str, *, mac: str) -> Link:
        """A bridge, down and unmarked but for its MAC. Error when the name is taken."""
        with _explained(f"create the bridge {name}"):
            await self._open().link("add", ifname=name, kind="bridge", address=mac)
        link = await self.get(name)
        if link is None:
            raise KernelError(ErrorCode.HOST_UNSUITABLE, f"the bridge {name} went away again")
        return link

    async def set_alias(self, link: Link, alias: str) -> None:
        with _explained(f"mark the link {link.name}"):
            await self._open().link("set", index=link.index, ifalias=alias)

    async def set_master(self, link: Link, master: int) -> None:
        with _explained(f"put the link {link.name} on its bridge"):
            await self._open().link("set", index=link.index, master=master)

    async def set_up(self, link: Link) -> None:
        with _explained(f"bring up the link {link.name}"):
            await self._open().link("set", index=link.index, state="up")

    async def disable_ipv6_address(self, link: Link) -> None:
        """No link-local address, now and when it comes up: what is not reachable needs no firewall.

        Where the kernel has no IPv6 there is nothing to do.
        """
        with contextlib.suppress(KernelError), _explained(f"set up {link.name}"):
            spec = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]})]}
            await self._open().link("set", index=link.index, IFLA_AF_SPEC=spec)

    async def learn_no_linklocal(self, link: Link) -> None:
        """A bridge learns who is where from frames to 01:80:c2:00:00:0x before any filter sees them: a guest
        could have what is meant for another sent to itself. Kernels before 5.0 know no way to forbid it."""
        option = netlink.BR_NO_LL_LEARN
        with contextlib.suppress(KernelError), _explained(f"set up {link.name}"):
            netlink.set_bridge_options(link.index, option, mask=option)

    async def addresses(self) -> list[tuple[int, ipaddress.IPv4Interface]]:
        """(link index, address with its prefix) of every IPv4 address."""
        found = await self._dump("list the addresses", self._open().addr, family=socket.AF_INET)
        return [
            (
                _int(message.get("index")),
                ipaddress.IPv4Interface(
                    f"{message.get('local') or message.get('address')}/{_int(message.get('prefixlen'))}"
                ),
            )
            for message in found
        ]

    async def add_address(self, link: Link, address: ipaddress.IPv4Interface) -> None:
        with _explained(f"give {link.name} the address {address}", exists_ok=True):
            await self._open().addr(
                "add", index=link.index, address=str(address.ip), prefixlen=address.network.prefixlen
            )

    async def remove_address(self, link: Link, address: ipaddress.IPv4Interface) -> None:
        with _explained(f"take the address {address} from {link.name}", missing_ok=True):
            await self._open().addr(
                "del", index=link.index, address=str(address.ip), prefixlen=address.network.prefixlen
            )

    async def routes(self) -> list[tuple[int, ipaddress.IPv4Network]]:
        """(outgoing link index or 0, destination) of every IPv4 route but the default and local ones."""
        found = await self._dump("list the routes", self._open().route, family=socket.AF_INET)
        return [
            (
                _int(message.get("oif")),
                ipaddress.IPv4Network(f"{message.get('dst')}/{_int(message.get('dst_len'))}"),
            )
            for message in found
            if message.get("dst") and _int(message.get("table")) != _RT_TABLE_LOCAL
        ]

    async def add_route(self, link: Link, network: ipaddress.IPv4Network) -> None:
        """What is for this network goes out there, without a gateway. The link must be up."""
        with _explained(f"route {network} over {link.name}", exists_ok=True):
            await self._open().route("add", dst=str(network), oif=link.index, scope=_RT_SCOPE_LINK)

    async def set_proxy_arp(self, link: Link, on: bool) -> None:
        """Whether this host answers there for addresses that it reaches over other links."""
        with _explained(f"set up {link.name}"):
            netlink.set_proxy_arp(link.index, on)

    async def create_tap(self, name: str, *, master: int, alias: str, group: int = 0) -> None:
        """A persistent tap, marked, up, port of `master` (its index), in a link group (0 is everybody's).
        Error when the name is taken."""
        descriptor = _open_tap(name)
        try:
            link = await self.get(name)
            if link is None:
                raise KernelError(ErrorCode.HOST_UNSUITABLE, f"the tap {name} went away again")
            with _explained(f"put the tap {name} on its bridge"):
                await self._open().link(
                    "set", index=link.index, master=master, state="up", ifalias=alias, group=group
                )
            with _explained(f"keep the tap {name}"):
                fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
        except BaseException:
            # this removes the tap, which takes as long as any removal
            await asyncio.to_thread(os.close, descriptor)
            raise
        os.close(descriptor)

    async def delete(self, link: Link) -> None:
        """Remove a link, by index; one that is gone is no error.

        In a thread: the kernel waits out readers of the link within the call, about 15 ms.
        """
        with _explained(f"remove the link {link.name}", missing_ok=True):
            await asyncio.to_thread(netlink.delete_link, link.index)


def _open_tap(name: str) -> int:
    with _explained(f"create the tap {name}", hint="/dev/net/tun must be usable: banger doctor"):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _link(message: netlink.LinkMessage) -> Link:
    index, flags, attributes = message
    kind = netlink.attributes(attributes.get(netlink.IFLA_LINKINFO, b"")).get(netlink.IFLA_INFO_KIND, b"")
    return Link(
        index=index,
        name=_text(attributes.get(netlink.IFLA_IFNAME, b"")),
        kind=_text(kind),
        alias=_text(attributes.get(netlink.IFLA_IFALIAS, b"")),
        master=int.from_bytes(attributes.get(netlink.IFLA_MASTER, b""), sys.byteorder),
        mac=attributes.get(netlink.IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & _IFF_UP),
        carrier=bool(int.from_bytes(attributes.get(netlink.IFLA_CARRIER, b""), sys.byteorder)),
    )


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


@contextlib.contextmanager
def _explained(
    what: str, *, missing_ok: bool = False, exists_ok: bool = False, hint: str | None = None
) -> Iterator[None]:
    """Turns what the kernel says into a KernelError that names what was tried."""
    try:
        yield
    except Exception as error:
        number = _errno_of(error)
        if number is None:
            raise
        if missing_ok and number in (errno.ENODEV, errno.ENOENT, errno.EADDRNOTAVAIL):
            return
        if exists_ok and number == errno.EEXIST:
            return
        code = _CODES.get(number, ErrorCode.HOST_UNSUITABLE)
        raise KernelError(code, f"cannot {what}: {os.strerror(number)}", hint=hint) from error


_CODES = {
    errno.EPERM: ErrorCode.PERMISSION_DENIED,
    errno.EACCES: ErrorCode.PERMISSION_DENIED,
    errno.EBUSY: ErrorCode.BUSY,
    errno.EEXIST: ErrorCode.ALREADY_EXISTS,
}


def _errno_of(error: BaseException | None) -> int | None:
    """The errno of an OSError or of pyroute2's NetlinkError (which is none, and has `code`)."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if error is not None and type(error).__name__ == "NetlinkError":
        code = getattr(error, "code", 0)
        return code if isinstance(code, int) and code > 0 else errno.EIO
    return None
