"""Network links: bridges and taps, by netlink (pyroute2) and the TUN ioctls, without `ip` processes.

Called by helper/ only. Whatever is made stays until it is deleted: taps are persistent, so that they
outlive the daemon and can be handed to a monitor. The owner's mark is the link's alias (ifalias).
Sources: Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h, rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

import msgspec
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from banger.errors import ErrorCode
from banger.system.errors import KernelError

MAX_NAME = 15
MAX_ALIAS = 255
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_UP, _LOWER_UP = 0x1, 0x10000
_DEADLINE_S = 10.0


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """kind: "bridge", "tun" (a tap is one) or another's. master: the name of the bridge it is a port of."""

    index: int
    name: str
    kind: str
    alias: str
    master: str
    up: bool
    carrier: bool


class Links:
    """One netlink socket, opened at first use, one request at a time."""

    def __init__(self) -> None:
        self._ipr: AsyncIPRoute | None = None
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        async with self._turn:
            if self._ipr is not None:
                await self._ipr.close()
                self._ipr = None

    async def all(self) -> list[Link]:
        """Every link of this network namespace."""
        async with self._turn, asyncio.timeout(_DEADLINE_S):
            ipr = await self._open()
            raw = [message async for message in await ipr.get_links()]
        names = {int(message["index"]): str(message.get("ifname")) for message in raw}
        return [
            Link(
                index=int(message["index"]),
                name=str(message.get("ifname")),
                kind=str(message.get(("linkinfo", "kind")) or ""),
                alias=str(message.get("ifalias") or ""),
                master=names.get(int(message.get("master") or 0), ""),
                up=bool(message["flags"] & _UP),
                carrier=bool(message["flags"] & _LOWER_UP),
            )
            for message in raw
        ]

    async def get(self, name: str) -> Link | None:
        return next((link for link in await self.all() if link.name == name), None)

    async def add_bridge(self, name: str, *, alias: str) -> None:
        """A new bridge, marked, still down. FileExistsError when the name is taken."""
        await self._do(f"add bridge {name}", "add", ifname=name, kind="bridge")
        await self.set(name, alias=alias)

    async def set_address(self, name: str, *, address: str, prefix: int) -> None:
        """Exactly this IPv4 address on the link; others of it are removed."""
        async with self._turn, asyncio.timeout(_DEADLINE_S):
            ipr = await self._open()
            index = await self._index(ipr, name)
            there = [
                (str(message.get("address")), int(message["prefixlen"]))
                async for message in await ipr.get_addr(family=2, index=index)
            ]
            with _explained(f"set the address of {name}"):
                for old in there:
                    if old != (address, prefix):
                        await ipr.addr("del", index=index, address=old[0], prefixlen=old[1])
                if (address, prefix) not in there:
                    await ipr.addr("add", index=index, address=address, prefixlen=prefix)

    async def addresses(self) -> dict[str, list[tuple[str, int]]]:
        """IPv4 addresses with prefix by link name."""
        links = {link.index: link.name for link in await self.all()}
        found: dict[str, list[tuple[str, int]]] = {}
        async with self._turn, asyncio.timeout(_DEADLINE_S):
            ipr = await self._open()
            async for message in await ipr.get_addr(family=2):
                name = links.get(int(message["index"]), "")
                found.setdefault(name, []).append((str(message.get("address")), int(message["prefixlen"])))
        return found

    async def set(
        self, name: str, *, alias: str | None = None, master: str | None = None, up: bool | None = None
    ) -> None:
        """Change what is given. master "": no port of any bridge."""
        change: dict[str, str | int] = {}
        if alias is not None:
            change["ifalias"] = alias[:MAX_ALIAS]
        if up is not None:
            change["state"] = "up" if up else "down"
        async with self._turn, asyncio.timeout(_DEADLINE_S):
            ipr = await self._open()
            if master is not None:
                change["master"] = await self._index(ipr, master) if master else 0
            index = await self._index(ipr, name)
            with _explained(f"change {name}"):
                await ipr.link("set", index=index, **change)

    async def delete(self, name: str) -> None:
        """No error when it is not there."""
        async with self._turn, asyncio.timeout(_DEADLINE_S):
            ipr = await self._open()
            found = await ipr.link_lookup(ifname=name)
            if not found:
                return
            try:
                await ipr.link("del", index=found[0])
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise _kernel_error(f"delete {name}", error) from error

    async def _do(self, what: str, command: str, *, ifname: str, kind: str) -> None:
        async with self._turn, asyncio.timeout(_DEADLINE_S):
            ipr = await self._open()
            with _explained(what):
                await ipr.link(command, ifname=ifname, kind=kind)

    async def _open(self) -> AsyncIPRoute:
        if self._ipr is None:
            self._ipr = AsyncIPRoute()
        return self._ipr

    async def _index(self, ipr: AsyncIPRoute, name: str) -> int:
        found = await ipr.link_lookup(ifname=name)
        if not found:
            raise KernelError(ErrorCode.HOST_UNSUITABLE, f"there is no link {name}")
        return int(found[0])


def make_tap(name: str) -> None:
    """A persistent tap, down, as a monitor can open it (one queue, vnet header). One of that name is kept."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH22x", name.encode("ascii"), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        fcntl.ioctl(descriptor, TUNSETIFF, request)
        fcntl.ioctl(descriptor, TUNSETPERSIST, 1)
    except OSError as error:
        busy = error.errno == errno.EBUSY
        raise KernelError(
            ErrorCode.BUSY if busy else ErrorCode.HOST_UNSUITABLE,
            f"cannot make tap {name}: {error.strerror}",
            hint="another process holds it" if busy else "/dev/net/tun must be usable: banger doctor",
        ) from error
    finally:
        os.close(descriptor)


def _kernel_error(what: str, error: NetlinkError) -> KernelError:
    number = int(error.code or 0)
    code = ErrorCode.PERMISSION_DENIED if number == errno.EPERM else ErrorCode.HOST_UNSUITABLE
    if number == errno.EBUSY:
        code = ErrorCode.BUSY
    if number == errno.EEXIST:
        code = ErrorCode.ALREADY_EXISTS
    return KernelError(code, f"cannot {what}: {os.strerror(number)}")


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise _kernel_error(what, error) from error
