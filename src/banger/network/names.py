"""Names: the DNS servers of this instance and the host's way to them (SPEC §4). The door to the dns modules.

Serves `dns_listen` for the host while the daemon runs, and port 53 of the bridge's address for guests while
the bridge is there. What cannot be bound is a problem that is told and tried again, never a daemon that does
not start. Records are given by vm/names.py. After a crash sockets are gone with the process, the resolver's
setting stays with the bridge; the next daemon takes both up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os

from banger.config.settings import Settings
from banger.network.dnsforward import RESOLV_CONF, Forwarder, HostServers
from banger.network.dnsserver import FOR_HOST, DNSServer
from banger.network.dnszone import NamedGuest, Zone
from banger.network.resolver import NameRoutes, ResolverRouting
from banger.system import tcplisten
from banger.system.lockorder import unheld

log = logging.getLogger(__name__)

GUEST_PORT = 53
CHECK_S = 30.0
UNDO_S = 5.0


class Names:
    def __init__(
        self,
        settings: Settings,
        routes: NameRoutes,
        *,
        check_s: float = CHECK_S,
        resolv_conf: str = RESOLV_CONF,
    ) -> None:
        host, _, port = settings.dns_listen.rpartition(":")
        self._host_address, self._host_port = host, int(port)
        self._bridge_ip = settings.bridge_ip
        self._zone = Zone(settings.bridge_ip, settings.cidr)
        ourselves = (self._bridge_ip, *((host,) if self._host_port == GUEST_PORT else ()))
        self._servers = HostServers(settings.default_dns, ourselves=ourselves, path=resolv_conf)
        self._for_host = DNSServer(self._zone, limits=FOR_HOST)
        self._for_guests: DNSServer | None = None
        self._routing = ResolverRouting(routes, settings.bridge_name)
        self._problems: dict[str, str] = {}
        self._bridge = False
        self._check_s = check_s
        self._look = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._asking_resolver = asyncio.Lock()
        """Apart from the other: resolvectl may take its time, and a start of a VM must not."""

    async def open(self) -> None:
        """Serve the host, and keep what this is about right from now on."""
        await self._bind()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="names", context=unheld())

    async def close(self) -> None:
        """The daemon ends. The resolver's setting stays while the bridge does: the next daemon serves it."""
        await self._end_keeper()
        async with self._changing:
            await self._for_host.close()
            if self._for_guests is not None:
                await self._for_guests.close()
                self._for_guests = None

    def put(self, vm_id: str, guest: NamedGuest) -> None:
        self._zone.put(vm_id, guest)

    def get(self, vm_id: str) -> NamedGuest | None:
        return self._zone.get(vm_id)

    def remove(self, vm_id: str) -> None:
        self._zone.remove(vm_id)

    def problems(self) -> tuple[str, ...]:
        """What does not work of names now, in whole sentences."""
        routing = (self._routing.problem,) if self._routing.problem else ()
        return (*self._problems.values(), *routing)

    async def bridge_up(self) -> None:
        """The bridge has its address: serve guests there. Idempotent; the host's resolver is told soon."""
        self._bridge = True
        await self._bind()
        self._look.set()

    async def bridge_down(self) -> None:
        """The bridge is about to go."""
        self._bridge = False
        async with self._changing:
            self._problems.pop(self._bridge_ip, None)
            if self._for_guests is not None:
                await self._for_guests.close()
                self._for_guests = None
        try:
            async with asyncio.timeout(UNDO_S), self._asking_resolver:
                await self._routing.undo()
        except TimeoutError:
            log.warning("systemd-resolved does not answer: its setting goes with the bridge")

    async def check(self) -> None:
        """Try again what could not be bound; see that the resolver still asks us."""
        await self._bind()
        async with self._asking_resolver:
            server = self._server_for_host()
            if self._bridge and server:
                await self._routing.keep(server)

    def _server_for_host(self) -> str:
        """Whom the host's resolver is to ask; "" for nobody."""
        if self._for_host.is_open:
            host = "127.0.0.1" if self._host_address == "0.0.0.0" else self._host_address
            return host if self._host_port == GUEST_PORT else f"{host}:{self._host_port}"
        return self._bridge_ip if self._for_guests is not None else ""

    async def _bind(self) -> None:
        async with self._changing:
            if not self._for_host.is_open:
                await self._open(self._for_host, self._host_address, self._host_port)
            if self._bridge and self._for_guests is None:
                server = DNSServer(self._zone, Forwarder(self._servers), for_guests=True)
                await self._open(server, self._bridge_ip, GUEST_PORT)
                self._for_guests = server if server.is_open else None

    async def _open(self, server: DNSServer, address: str, port: int) -> None:
        try:
            await server.open(address, port)
        except OSError as error:
            problem = await asyncio.to_thread(explain_busy, address, port, error)
            if self._problems.get(address) != problem:
                log.warning("%s", problem)
            self._problems[address] = problem
        else:
            log.info("names are served on %s:%d", address, port)
            self._problems.pop(address, None)

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._check_s):
                    await self._look.wait()
            self._look.clear()
            try:
                await self.check()
            except Exception:
                log.exception("the look at names failed")

    async def _end_keeper(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)


def explain_busy(address: str, port: int, error: OSError) -> str:
    """Why names are not served there, and what to do. Blocking."""
    what = "guests resolve no names" if port == GUEST_PORT else "the host cannot ask for NAME.vm"
    why = os.strerror(error.errno) if error.errno else str(error)
    remedy = "set dns_listen in config.toml to a free address and port"
    if error.errno == errno.EADDRINUSE:
        who = tcplisten.holder(address, port, udp=True) or tcplisten.holder(address, port)
        why = f"{who or 'another program'} has that port"
        if port == GUEST_PORT:
            remedy = f"let it listen on its own addresses only, not on {address} (dnsmasq: bind-dynamic)"
    return f"names are not served on {address}:{port}, {what}: {why}; {remedy}"
