"""The client of registries: manifests and blobs of one repository, from a mirror or the registry itself.

`Registry.open` connects nothing; each request finds its way. Small documents are read with a limit and
checked against the digest they were asked by; blobs go into a cache's Part, continued where it stands. What
fails in passing (5xx, 429, broken connections) is tried again, each time said, a bounded number of times.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import aiohttp

from banger.errors import ErrorCode
from banger.image.errors import ImageError, download_failed, invalid
from banger.image.oci.blobs import CHUNK, Part
from banger.image.oci.endpoint import Access, endpoints
from banger.image.oci.manifest import ACCEPT, MAX_MANIFEST
from banger.image.oci.reference import Reference, is_digest
from banger.image.oci.transport import (
    SMALL_TIMEOUT_S,
    Patience,
    Sleep,
    Transient,
    Transport,
    read_small,
)

log = logging.getLogger("banger.registry")

SLOWEST = 4 << 10
"""Bytes in a second, over SMALL_TIMEOUT_S; a connection that brings less is broken off, however large the
blob is said to be, and its download continued on another."""
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_ELSEWHERE = frozenset({ErrorCode.NOT_FOUND, ErrorCode.DOWNLOAD_FAILED, ErrorCode.PERMISSION_DENIED})
"""Failures of a mirror after which the registry itself is asked."""

Result = TypeVar("Result")
Tell = Callable[[str], None]
"""Hears why one waits or goes elsewhere."""
Counted = Callable[[int], None]
"""Hears of every piece of a blob: bytes, negative where a download begins anew."""


class Registry:
    """One repository's registry. `what` in its errors is the reference or a blob of it."""

    def __init__(
        self, reference: Reference, transports: list[Transport], *, sleep: Sleep, tell: Tell
    ) -> None:
        self._reference = reference
        self._transports = transports
        self._sleep = sleep
        self._tell = tell

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, reference: Reference, access: Access, *, tell: Tell, sleep: Sleep = asyncio.sleep
    ) -> AsyncIterator[Registry]:
        async with contextlib.AsyncExitStack() as stack:
            scope = f"repository:{reference.repository}:pull"
            transports = [
                await stack.enter_async_context(Transport(endpoint, access, scope=scope))
                for endpoint in endpoints(reference, access)
            ]
            yield cls(reference, transports, sleep=sleep, tell=tell)

    async def resolve(self) -> str:
        """The digest that the reference's tag has now; "" where the registry does not say without the whole.

        A HEAD costs no bytes, and registries that count pulls do not count it.
        """
        if self._reference.digest:
            return self._reference.digest

        async def ask(transport: Transport) -> str:
            path = self._path(f"manifests/{self._reference.tag}")
            what = str(self._reference)
            async with (
                asyncio.timeout(SMALL_TIMEOUT_S),
                transport.request("HEAD", path, what=what, headers={"Accept": ACCEPT}) as response,
            ):
                if response.status in (401, 403):
                    raise await transport.refused(response, what)
                digest = response.headers.get("Docker-Content-Digest", "")
                return digest if response.status == 200 and is_digest(digest) else ""

        return await self._somewhere(str(self._reference), ask)

    async def manifest(self, target: str) -> tuple[bytes, str]:
        """A manifest or index by tag or digest: (content, content type). Checked where target is a digest."""
        name = f"{self._reference.registry}/{self._reference.repository}"
        what = f"{name}@{target}" if is_digest(target) else f"{name}:{target}"

        async def ask(transport: Transport) -> tuple[bytes, str]:
            path = self._path(f"manifests/{target}")
            async with (
                asyncio.timeout(SMALL_TIMEOUT_S),
                transport.request("GET", path, what=what, headers={"Accept": ACCEPT}) as response,
            ):
                if response.status != 200:
                    raise await transport.refused(response, what)
                data = await read_small(response, MAX_MANIFEST, f"the manifest of {what}")
                if is_digest(target):
                    algorithm = target.partition(":")[0]
                    if f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}" != target:
                        raise invalid(f"the registry sends something else for {what}")
                return data, response.headers.get("Content-Type", "")

        return await self._somewhere(what, ask)

    async def bring(self, part: Part, digest: str, *, counted: Counted) -> None:
        """Fill a part of the cache with a blob, from where it stands, over several connections if need be."""
        what = f"{digest[:19]}… of {self._reference}"
        last = self._transports[-1]
        for transport in self._transports:
            patience = self._patience(what)
            try:
                while part.have < part.size:
                    before = part.have
                    try:
                        await self._fill(transport, part, digest, what=what, counted=counted)
                    except Transient as error:
                        await patience.wait(error, progressed=part.have > before)
                return
            except ImageError as error:
                if transport is last or error.code not in _ELSEWHERE:
                    raise
                self._go_on(transport, error)

    async def _fill(
        self, transport: Transport, part: Part, digest: str, *, what: str, counted: Counted
    ) -> None:
        """One connection's worth."""
        headers = {"Range": f"bytes={part.have}-"} if part.have else {}
        path = self._path(f"blobs/{digest}")
        try:
            async with (
                asyncio.timeout(SMALL_TIMEOUT_S) as clock,
                transport.request("GET", path, what=what, headers=headers) as response,
            ):
                if response.status == 416 or (response.status == 206 and not _continues(response, part)):
                    _again(part, counted)
                    raise Transient(f"{transport.endpoint.address} gives another part than asked for")
                if response.status not in (200, 206):
                    raise await _no_blob(transport, response, what)
                if response.status == 200:
                    # no ranges here
                    _again(part, counted)
                    length = response.content_length
                    if length is not None and length != part.size:
                        raise invalid(f"{what} is {length} bytes, and its manifest says {part.size}")
                await _absorb(response, part, what=what, counted=counted, clock=clock)
        except TimeoutError as error:
            raise Transient(f"{transport.endpoint.address} is too slow") from error
        if part.have < part.size:
            raise Transient(f"{transport.endpoint.address} sent {part.have} of {part.size} bytes")

    async def _somewhere(self, what: str, ask: Callable[[Transport], Awaitable[Result]]) -> Result:
        """A small request: at the mirror, else at the registry, with patience for what passes."""
        last = self._transports[-1]
        for transport in self._transports[:-1]:
            try:
                return await self._patiently(transport, what, ask)
            except ImageError as error:
                if error.code not in _ELSEWHERE:
                    raise
                self._go_on(transport, error)
        return await self._patiently(last, what, ask)

    async def _patiently(
        self, transport: Transport, what: str, ask: Callable[[Transport], Awaitable[Result]]
    ) -> Result:
        patience = self._patience(what)
        while True:
            try:
                return await ask(transport)
            except Transient as error:
                await patience.wait(error, progressed=False)
            except TimeoutError:
                await patience.wait(Transient(f"{transport.endpoint.address} is too slow"), progressed=False)

    def _patience(self, what: str) -> Patience:
        return Patience(what, sleep=self._sleep, tell=self._tell)

    def _go_on(self, transport: Transport, error: ImageError) -> None:
        log.info("mirror %s: %s", transport.endpoint.address, error.brief)
        self._tell(f"the mirror {transport.endpoint.address} fails; asking the registry itself")

    def _path(self, rest: str) -> str:
        return f"{self._reference.repository}/{rest}"


async def _absorb(
    response: aiohttp.ClientResponse, part: Part, *, what: str, counted: Counted, clock: asyncio.Timeout
) -> None:
    """The body into the part, a MiB at a time; what came before a connection broke is kept.

    clock: set anew with each piece that was not too slow.
    """
    held = bytearray()
    lately = 0
    try:
        async for chunk in response.content.iter_any():
            if part.have + len(held) + len(chunk) > part.size:
                held.clear()
                raise invalid(f"{what} is larger than the {part.size} bytes of its manifest")
            held += chunk
            counted(len(chunk))
            lately += len(chunk)
            if lately >= SLOWEST * SMALL_TIMEOUT_S:
                lately = 0
                clock.reschedule(asyncio.get_running_loop().time() + SMALL_TIMEOUT_S)
            if len(held) >= CHUNK:
                piece, held = held, bytearray()
                await part.append(piece)
    finally:
        if held:
            await part.append(held)


def _again(part: Part, counted: Counted) -> None:
    counted(-part.have)
    part.restart()


def _continues(response: aiohttp.ClientResponse, part: Part) -> bool:
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return (
        found is not None
        and int(found[1]) == part.have
        and part.have > 0
        and found[3] in ("*", str(part.size))
    )


async def _no_blob(transport: Transport, response: aiohttp.ClientResponse, what: str) -> ImageError:
    if response.status == 404:
        return download_failed(f"{transport.endpoint.address} has the manifest, but not {what}")
    return await transport.refused(response, what)
