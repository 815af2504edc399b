"""Routing of `.vm` on the host: systemd-resolved is told to ask banger for it, over the bridge's link.

Set while the bridge serves, taken back when the last VM goes, set again when it was lost (resolved starts
afresh, another manager of the link resets it). Hosts without systemd-resolved are left as they are:
docs/names.md has what to write for others. After a crash the setting stays with the link, as do its VMs.
"""

from __future__ import annotations

import logging
from typing import Protocol

from banger.errors import BangerError
from banger.network.dnszone import DOMAIN

log = logging.getLogger(__name__)


class NameRoutes(Protocol):
    """The part of helper.interface.Helper that this uses."""

    async def names_routable(self) -> bool: ...

    async def route_names(self, link: str, *, server: str, domain: str) -> None: ...

    async def names_routed(self, link: str, *, server: str, domain: str) -> bool: ...

    async def unroute_names(self, link: str) -> None: ...


class ResolverRouting:
    def __init__(self, routes: NameRoutes, link: str) -> None:
        self._routes = routes
        self._link = link
        self._set = False
        self.problem = ""
        """Why names are not routed although the host could; "" where all is well."""

    async def keep(self, server: str) -> None:
        """Make it so, or see that it still is. server: IPv4, or IPv4:port. Failures become the problem."""
        try:
            if not await self._routes.names_routable():
                self.problem = ""
                return
            if await self._routes.names_routed(self._link, server=server, domain=DOMAIN):
                self.problem, self._set = "", True
                return
            if self._set:
                log.warning("systemd-resolved has lost .%s on %s: set again", DOMAIN, self._link)
            self._set = True
            await self._routes.route_names(self._link, server=server, domain=DOMAIN)
            log.info("systemd-resolved asks %s for .%s, over %s", server, DOMAIN, self._link)
            self.problem = ""
        except (BangerError, OSError) as error:
            self._explain(f"systemd-resolved does not take .{DOMAIN} on {self._link}: {error}")

    async def undo(self) -> None:
        """Whether or not this daemon set it: an earlier one may have."""
        try:
            if await self._routes.names_routable():
                await self._routes.unroute_names(self._link)
        except (BangerError, OSError) as error:
            log.warning("systemd-resolved keeps .%s on %s: %s", DOMAIN, self._link, error)
        self._set, self.problem = False, ""

    def _explain(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem
