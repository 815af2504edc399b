"""Bounded, checked, resumable downloads over HTTP(S).

`Fetcher` is the image room's only network client. Files with a known digest go to
`DIR/<sha256>` by way of `DIR/<sha256>.part`; a part that a crash or a broken connection left is
continued with a Range request. Nothing is given out before size and digest are right.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import IO

import aiohttp

from banger.image.errors import download_failed, from_os_error, invalid
from banger.image.sources import NO_PROXIES, Proxies
from banger.image.staging import exclusive, require_space
from banger.model.progress import Progress, ProgressEvent, no_progress

CHUNK = 1 << 20
CONNECT_TIMEOUT_S = 30.0
READ_TIMEOUT_S = 60.0
PROGRESS_STEP = 1 << 20
MAX_STALLS = 2
"""Consecutive connections that may break without having brought anything before a download fails."""
USER_AGENT = "banger"


class Fetcher:
    """An HTTP client; an async context manager. directory: where files are kept by digest."""

    def __init__(self, directory: Path, *, proxies: Proxies = NO_PROXIES) -> None:
        self._directory = directory
        self._proxies = proxies
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Fetcher:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
            ),
            headers={"User-Agent": USER_AGENT},
            auto_decompress=False,
            trust_env=True,  # http_proxy and friends, where apt names no proxy
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def read(self, url: str, *, limit: int) -> bytes:
        """A small file of unknown digest (an InRelease), at most `limit` bytes; FileNotFoundError on 404."""
        body = bytearray()
        async with self._get(url) as response:
            if response.status == 404:
                raise FileNotFoundError(url)
            _expect(response, url, 200)
            async for chunk in response.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > limit:
                    raise invalid(f"{url} is larger than {limit >> 10} KiB")
        return bytes(body)

    async def fetch(
        self,
        url: str,
        *,
        sha256: str,
        size: int,
        step: str = "download",
        message: str = "",
        progress: Progress = no_progress,
    ) -> Path:
        """The file with this digest and size (bytes), from the cache or from `url`.

        Raises DOWNLOAD_FAILED (network, 404), IMAGE_INVALID (wrong size or digest), NO_SPACE;
        FileNotFoundError on 404, so that a caller can try another address.
        """
        final = self._directory / sha256
        message = message or f"downloading {url.rpartition('/')[2]}"
        async with exclusive(
            self._directory / f".lock-{sha256}",
            waiting=lambda: progress(ProgressEvent(step=step, message=f"{message} (another process is)")),
        ):
            if await asyncio.to_thread(_has_size, final, size):
                if await asyncio.to_thread(_sha256, final) == sha256:
                    return final
                final.unlink()  # a disk that lies, or a user who edited it: fetch it again
            await asyncio.to_thread(require_space, self._directory, size, what=message)
            part = self._directory / f"{sha256}.part"
            progress(ProgressEvent(step=step, message=message, current=0, total=size))
            try:
                digest, resumed = await self._complete(
                    url, part, size=size, step=step, message=message, progress=progress
                )
                if digest != sha256 and resumed:
                    # what an earlier run had left may be the culprit, never checked before: once from nothing
                    part.unlink()
                    digest, _ = await self._complete(
                        url, part, size=size, step=step, message=message, progress=progress
                    )
                if digest != sha256:
                    part.unlink()
                    raise invalid(
                        f"{url} is not the file that the signed index names",
                        details=f"sha256 {digest}, expected {sha256}",
                        hint="a mirror in mid-update, or a proxy that changes files: try again later",
                    )
                part.rename(final)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise from_os_error(error, message) from error
        return final

    async def _complete(
        self, url: str, part: Path, *, size: int, step: str, message: str, progress: Progress
    ) -> tuple[str, bool]:
        """Bring part to `size` bytes. Returns its digest and whether it began with old bytes."""
        hasher, have = await asyncio.to_thread(_hash_part, part, size)
        resumed = have > 0
        stalls = 0
        with part.open("r+b" if part.exists() else "w+b") as file:
            while have < size:
                before = have
                try:
                    async with self._get(url, start=have) as response:
                        if response.status == 404:
                            raise FileNotFoundError(url)
                        if have and response.status != 206:
                            # no ranges here: from the beginning
                            hasher, have, before = hashlib.sha256(), 0, 0
                        if have:
                            _expect_range(response, url, have)
                        else:
                            _expect(response, url, 200)
                        await asyncio.to_thread(_cut, file, have)
                        async for chunk in response.content.iter_chunked(CHUNK):
                            if have + len(chunk) > size:
                                raise invalid(f"{url} is larger than the {size} bytes of the signed index")
                            await asyncio.to_thread(_absorb, file, hasher, chunk)
                            if have // PROGRESS_STEP != (have + len(chunk)) // PROGRESS_STEP:
                                progress(
                                    ProgressEvent(
                                        step=step, message=message, current=have + len(chunk), total=size
                                    )
                                )
                            have += len(chunk)
                except (aiohttp.ClientError, TimeoutError) as error:
                    stalls = 0 if have > before else stalls + 1
                    if stalls >= MAX_STALLS:
                        raise _failed(url, error) from error
                    continue
                if have < size:
                    if have == before:
                        raise invalid(f"{url} ends after {have} of {size} bytes")
                    continue
            await asyncio.to_thread(_flush, file)
        progress(ProgressEvent(step=step, message=message, current=size, total=size))
        return hasher.hexdigest(), resumed

    @contextlib.asynccontextmanager
    async def _get(self, url: str, *, start: int = 0) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None, "Fetcher is used inside `async with`"
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        proxy = self._proxies.for_url(url)
        try:
            response = await self._session.get(url, headers=headers, proxy=proxy or None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            if start:
                raise aiohttp.ClientConnectionError(str(error)) from error
            raise _failed(url, error) from error
        try:
            yield response
        finally:
            response.close()


def _failed(url: str, error: BaseException) -> Exception:
    return download_failed(
        f"cannot download {url}: {error or type(error).__name__}",
        details=repr(error),
        hint="is the network up? the mirror is the host's apt's, or debian_mirror in config.toml",
    )


def _expect(response: aiohttp.ClientResponse, url: str, status: int) -> None:
    if response.status != status:
        raise download_failed(
            f"cannot download {url}: the server answers {response.status} {response.reason}"
        )


def _expect_range(response: aiohttp.ClientResponse, url: str, start: int) -> None:
    found = response.headers.get("Content-Range", "")
    if not found.startswith(f"bytes {start}-"):
        raise download_failed(f"cannot download {url}: asked for bytes {start}-, got {found!r}")


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_part(part: Path, size: int) -> tuple[hashlib._Hash, int]:
    """The hash so far and its length; a part as long as the file or longer is worthless."""
    hasher = hashlib.sha256()
    try:
        if part.stat().st_size >= size:
            part.unlink()
            return hasher, 0
        have = 0
        with part.open("rb") as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
                have += len(chunk)
        return hasher, have
    except FileNotFoundError:
        return hasher, 0


def _cut(file: IO[bytes], length: int) -> None:
    file.seek(length)
    file.truncate()


def _absorb(file: IO[bytes], hasher: hashlib._Hash, chunk: bytes) -> None:
    file.write(chunk)
    hasher.update(chunk)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
