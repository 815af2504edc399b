"""systemd-resolved: which domain is asked over which link, through `resolvectl`. Called by helper/ only.

What is set belongs to the link in resolved's memory: it goes with the link, by `revert`, or when another
manager of the link takes it away, and is the caller's to look after.
"""

from __future__ import annotations

import asyncio
import socket

from banger.system.errors import CommandError
from banger.system.programs import find
from banger.system.run import run

SOCKET = "/run/systemd/resolve/io.systemd.Resolve"
_TIMEOUT_S = 10.0
_CONNECT_S = 2.0


async def runs() -> bool:
    """Whether it serves now (not: could be started), and `resolvectl` is there to talk to it."""
    return find("resolvectl") is not None and await asyncio.to_thread(_answers, SOCKET)


async def set_domain(link: str, *, server: str, domain: str) -> None:
    """Names below `domain`, and no others, are asked of `server` (IPv4, or IPv4:port). CommandError."""
    await run(["resolvectl", "dns", link, server], timeout_s=_TIMEOUT_S)
    await run(["resolvectl", "domain", link, f"~{domain}"], timeout_s=_TIMEOUT_S)
    await run(["resolvectl", "default-route", link, "no"], timeout_s=_TIMEOUT_S)


async def has_domain(link: str, *, server: str, domain: str) -> bool:
    """Whether it is as set_domain makes it. False too where resolved knows no such link."""
    try:
        servers = await run(["resolvectl", "dns", link], timeout_s=_TIMEOUT_S)
        domains = await run(["resolvectl", "domain", link], timeout_s=_TIMEOUT_S)
        route = await run(["resolvectl", "default-route", link], timeout_s=_TIMEOUT_S)
    except CommandError:
        return False
    return (
        link_values(servers.stdout) == (server,)
        and link_values(domains.stdout) == (f"~{domain}",)
        and link_values(route.stdout) == ("no",)
    )


async def revert(link: str) -> None:
    """The link as if nobody had ever set anything; one that resolved does not know is no error."""
    done = await run(["resolvectl", "revert", link], timeout_s=_TIMEOUT_S, check=False)
    if (
        done.status
        and (await run(["resolvectl", "dns", link], timeout_s=_TIMEOUT_S, check=False)).status == 0
    ):
        raise CommandError(done.argv, done.status, stderr=done.stderr)


def link_values(said: bytes) -> tuple[str, ...]:
    """`Link 7 (br-fc): 127.0.0.1:42069` → its words behind the colon; () for anything else."""
    head, found, values = said.decode("utf-8", "replace").strip().partition("): ")
    return tuple(values.split()) if found and head.startswith("Link ") and "\n" not in values else ()


def _answers(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_CONNECT_S)
            client.connect(path)
    except OSError:
        return False
    return True
