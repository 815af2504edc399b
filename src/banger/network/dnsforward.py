"""Names outside `.vm`, for guests with NAT: asked of the host's own resolver, once for each question.

Each question goes out with a number and from a port that nobody can guess, over a socket that hears only the
server asked; what comes back must repeat the question. Bounded: questions under way, per guest and in all;
time; servers tried. Owns no socket longer than a question takes; nothing is left after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import secrets
from collections.abc import Callable, Sequence

from banger.network.dnslimit import Places
from banger.network.dnspacket import Query, fitted, relayed, upstream_query

log = logging.getLogger(__name__)

RESOLV_CONF = "/etc/resolv.conf"
MOST_AT_ONCE = 512
MOST_PER_SOURCE = 32
MOST_SERVERS = 3
TRY_S = 1.4
"""For each server. A resolver in a guest asks again after 5 s: it should hear of a failure before."""
MAX_TCP_ANSWER = 65535
_READ_LIMIT = 64 << 10
_DNS_PORT = 53


def read_servers(text: str, *, ourselves: Sequence[str] = ()) -> tuple[str, ...]:
    """The `nameserver` addresses of a resolv.conf that are not ours; at most three, as the C library."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(words[1])
                if str(address) not in ourselves and not address.is_unspecified:
                    found[str(address)] = None
    return tuple(found)[:MOST_SERVERS]


class HostServers:
    """The servers that the host itself asks, read again whenever the file changes."""

    def __init__(self, fallback: str, *, ourselves: Sequence[str], path: str = RESOLV_CONF) -> None:
        """fallback: where the file names none. ourselves: addresses that would be a loop."""
        self._fallback = fallback
        self._ourselves = tuple(ourselves)
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._servers: tuple[str, ...] = (fallback,)

    def __call__(self) -> tuple[str, ...]:
        try:
            status = os.stat(self._path)
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    found = read_servers(file.read(_READ_LIMIT), ourselves=self._ourselves)
                self._seen, self._servers = seen, found or (self._fallback,)
        except OSError:
            self._seen, self._servers = None, (self._fallback,)
        return self._servers


class Forwarder:
    def __init__(
        self, servers: Callable[[], Sequence[str]], *, port: int = _DNS_PORT, try_s: float = TRY_S
    ) -> None:
        self._servers = servers
        self._port = port
        self._try_s = try_s
        self.places = Places(most=MOST_AT_ONCE, per_source=MOST_PER_SOURCE)
        """Whoever asks takes one for each question, and gives it back."""

    async def ask(self, query: Query, *, tcp: bool) -> bytes | None:
        """The reply for the asker, cut to what it takes; None when no server gave one in time."""
        for server in self._servers():
            asked = upstream_query(query, secrets.randbits(16))
            try:
                async with asyncio.timeout(self._try_s):
                    ask = self._by_tcp if tcp else self._by_datagram
                    answer = await ask(server, asked, query)
            except (TimeoutError, OSError, EOFError) as error:
                log.debug("%s does not answer: %s", server, error or "in time")
                continue
            if answer is not None:
                return answer if tcp else fitted(answer, query, query.datagram_limit())
        return None

    async def _by_datagram(self, server: str, asked: bytes, query: Query) -> bytes | None:
        loop = asyncio.get_running_loop()
        transport, waiting = await loop.create_datagram_endpoint(
            lambda: _Waiting(asked, query), remote_addr=(server, self._port)
        )
        try:
            transport.sendto(asked)
            return await waiting.answer
        finally:
            transport.close()

    async def _by_tcp(self, server: str, asked: bytes, query: Query) -> bytes | None:
        reader, writer = await asyncio.open_connection(server, self._port, limit=MAX_TCP_ANSWER)
        try:
            writer.write(len(asked).to_bytes(2, "big") + asked)
            await writer.drain()
            length = int.from_bytes(await reader.readexactly(2), "big")
            return relayed(await reader.readexactly(length), asked, query)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class _Waiting(asyncio.DatagramProtocol):
    """Passes over what is no answer to the question; an ICMP error ends the wait."""

    def __init__(self, asked: bytes, query: Query) -> None:
        self._asked = asked
        self._query = query
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        ours = relayed(data, self._asked, self._query)
        if ours is not None and not self.answer.done():
            self.answer.set_result(ours)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.cancel()
