"""Does this port of a guest speak http, or https? One question, on a connection or two, by a deadline.

Used by vm/. The answer is a guest's and hostile: HEAD is asked, the first bytes of a status line are read,
no more than LIMIT of them; no redirect is followed, no certificate believed. Who speaks first (ssh, mail)
is not asked anything. Nothing is left after a crash.
"""

from __future__ import annotations

import asyncio
import functools
import re
import ssl

LIMIT = 4096
SPEAKS_FIRST_S = 0.15
"""Servers of other protocols greet; one of http waits to be asked."""
STATUS = re.compile(rb"HTTP/\d\.\d (\d{3})")
BAD_REQUEST = b"400"  # also what many https servers answer to plain http


async def http_scheme(address: str, port: int, *, host: str, timeout_s: float) -> str:
    """ "http", "https", or "" for anything else, unreachable and silent included. host: the Host header."""
    plain = tls = b""
    try:
        async with asyncio.timeout(timeout_s):
            plain = await _status(address, port, host=host, context=None)
            if plain not in (b"", BAD_REQUEST):
                return "http"
            tls = await _status(address, port, host=host, context=_no_questions_asked())
    except (OSError, TimeoutError, asyncio.LimitOverrunError, _SpeaksFirst):  # ssl's errors are OSErrors
        pass
    if tls:
        return "https"
    return "http" if plain else ""


class _SpeaksFirst(Exception):
    """It is a server of something else."""


async def _status(address: str, port: int, *, host: str, context: ssl.SSLContext | None) -> bytes:
    """The three digits of its status line; b"" where what it says is none."""
    reader, writer = await asyncio.open_connection(
        address, port, limit=LIMIT, ssl=context, server_hostname=host if context else None
    )
    try:
        if context is None and await _greets(reader):
            raise _SpeaksFirst
        headers = f"Host: {host}:{port}\r\nUser-Agent: banger\r\nConnection: close"
        writer.write(f"HEAD / HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        said = b""
        while len(said) < 12:
            data = await reader.read(LIMIT)
            if not data:
                break
            said += data
        found = STATUS.match(said)
        return found.group(1) if found else b""
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


async def _greets(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(SPEAKS_FIRST_S):
            return bool(await reader.read(1))
    except TimeoutError:
        return False


@functools.cache
def _no_questions_asked() -> ssl.SSLContext:
    """Only to learn that it is TLS: nothing is sent that a listener on the way might not know."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
