"""The cache of blobs by digest, shared by every pull of every process of an instance.

`ROOT/sha256/<hex>` is a whole blob, `<hex>.part` one that is being brought, or that an interrupted pull
left and the next one continues. All locks are flocks on these files themselves, so nothing else is left
by a crash: who writes a part holds it exclusively, who uses a blob holds it shared (a Lease), and `prune`
removes only what it can lock. A blob is hashed whenever a lease takes it up: a torn or edited file is
brought again. Used by the image room.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from banger.errors import ErrorCode
from banger.image.errors import ImageError, from_os_error, invalid
from banger.image.oci.reference import is_digest
from banger.system.lockorder import Rank, drop, take
from banger.system.threads import in_thread

CHUNK = 1 << 20
LOCK_WAIT_S = 3600.0
"""How long one waits for another pull that brings the same blob."""
_LOCK_LOOK_S = 0.05
_NAME = re.compile(r"(?P<hex>[0-9a-f]{64}|[0-9a-f]{128})(?P<part>\.part)?", re.ASCII)
_ALGORITHMS = ("sha256", "sha512")


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """removed: digests (in a dry run: what would be); freed: bytes on disk; in_use: a pull has them."""

    removed: tuple[str, ...]
    freed: int
    in_use: tuple[str, ...]


class BlobCache:
    """root: made when first written to, 0700."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise invalid(f"no digest: {digest[:100]!a}")
        algorithm, _, name = digest.partition(":")
        return self.root / algorithm / name

    def lease(self) -> Lease:
        """`with cache.lease() as lease`: what is obtained in it stays on disk until its end."""
        return Lease(self)

    def prune(self, keep: Collection[str] = (), *, dry_run: bool = False) -> Pruned:
        """Remove every blob and part but those in `keep` and those that someone uses. Blocking."""
        removed: list[str] = []
        in_use: list[str] = []
        freed = 0
        for path, digest, part in self._files():
            if digest in keep and not part:
                continue
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise from_os_error(error, f"opening {path}") from error
            try:
                if not _lock(descriptor, fcntl.LOCK_EX):
                    in_use.append(digest)
                elif _is_at(descriptor, path):
                    freed += os.fstat(descriptor).st_blocks * 512
                    removed.append(digest)
                    if not dry_run:
                        path.unlink()
            except OSError as error:
                raise from_os_error(error, f"removing {path}") from error
            finally:
                os.close(descriptor)
        return Pruned(removed=tuple(dict.fromkeys(removed)), freed=freed, in_use=tuple(dict.fromkeys(in_use)))

    def _files(self) -> Iterator[tuple[Path, str, bool]]:
        for algorithm in _ALGORITHMS:
            try:
                names = sorted(os.listdir(self.root / algorithm))
            except FileNotFoundError:
                continue
            for name in names:
                found = _NAME.fullmatch(name)
                if found:
                    yield self.root / algorithm / name, f"{algorithm}:{found['hex']}", bool(found["part"])


class Part:
    """A blob that is being brought, exclusively ours: `have` of `size` bytes are there."""

    def __init__(self, descriptor: int, *, digest: str, size: int) -> None:
        self.size = size
        self.have = 0
        self._descriptor = descriptor
        self._algorithm = digest.partition(":")[0]
        self._hasher = hashlib.new(self._algorithm)

    def take_stock(self, stop: threading.Event) -> None:
        """Hash what an earlier pull left; more than a whole blob is worthless. Blocking."""
        if os.fstat(self._descriptor).st_size > self.size:
            self.restart()
        while not stop.is_set() and (chunk := os.pread(self._descriptor, CHUNK, self.have)):
            self._hasher.update(chunk)
            self.have += len(chunk)

    def restart(self) -> None:
        """From nothing."""
        os.ftruncate(self._descriptor, 0)
        self._hasher = hashlib.new(self._algorithm)
        self.have = 0

    async def append(self, data: bytes | bytearray) -> None:
        """In a thread. More than `size` bytes altogether is refused (IMAGE_INVALID)."""
        if self.have + len(data) > self.size:
            raise invalid(f"a blob is larger than the {self.size} bytes it should have")
        await in_thread(lambda: self._append(data))

    def _append(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        position = self.have
        while view:
            written = os.pwrite(self._descriptor, view, position)
            view, position = view[written:], position + written
        self._hasher.update(data)
        self.have = position

    @property
    def digest(self) -> str:
        return f"{self._algorithm}:{self._hasher.hexdigest()}"


Bring = Callable[[Part], Awaitable[None]]
"""Brings a part to its size, by append(); may restart() it; raises where it cannot."""


class Lease:
    """A context manager; the blobs it gave out are held (a descriptor each) until it ends."""

    def __init__(self, cache: BlobCache) -> None:
        self.cache = cache
        self._held: dict[str, int] = {}

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        while self._held:
            os.close(self._held.popitem()[1])

    async def find(self, digest: str, *, size: int | None = None) -> Path | None:
        """The blob, checked and held, if the cache has it. size: in bytes, where it is known."""
        path = self.cache.path(digest)
        if digest in self._held:
            return path
        deadline = asyncio.get_running_loop().time() + LOCK_WAIT_S
        try:
            while True:
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                except FileNotFoundError:
                    return None
                try:
                    if _lock(descriptor, fcntl.LOCK_SH) and _is_at(descriptor, path):
                        if await _is_blob(descriptor, digest, size):
                            self._hold(digest, os.dup(descriptor))
                            return path
                        if _is_at(descriptor, path):
                            path.unlink()
                        return None
                finally:
                    os.close(descriptor)
                # who prunes holds it for a moment
                await _look_again(path, deadline)
        except OSError as error:
            raise from_os_error(error, f"reading {path}") from error

    async def obtain(
        self, digest: str, *, size: int, bring: Bring, waiting: Callable[[], None] | None = None
    ) -> Path:
        """The blob, from the cache or brought there by `bring`: of several who want it only one brings it.

        waiting: called once when another pull is bringing it. IMAGE_INVALID when what was brought is not
        the blob; a part that an earlier pull left is then not to blame: it is brought anew once.
        """
        path = self.cache.path(digest)
        while True:
            found = await self.find(digest, size=size)
            if found is not None:
                return found
            try:
                async with _exclusive_part(path, waiting) as descriptor:
                    if path.exists():
                        continue  # brought while we waited
                    await self._bring(descriptor, path, digest=digest, size=size, bring=bring)
                    if digest in self._held:
                        return path
            except OSError as error:
                raise from_os_error(error, f"writing {path}") from error

    async def put(self, digest: str, data: bytes) -> Path:
        """Keep a small blob that is at hand (a manifest, a config); its digest is checked."""

        async def bring(part: Part) -> None:
            part.restart()
            await part.append(data)

        return await self.obtain(digest, size=len(data), bring=bring)

    async def read(self, digest: str, *, limit: int) -> bytes | None:
        """The content of a small cached blob, or None."""
        path = await self.find(digest)
        if path is None:
            return None
        return _read_small(self._held[digest], limit, digest)

    async def _bring(self, descriptor: int, path: Path, *, digest: str, size: int, bring: Bring) -> None:
        part = Part(descriptor, digest=digest, size=size)
        stop = threading.Event()
        await in_thread(lambda: part.take_stock(stop), stop=stop.set)
        resumed = part.have > 0
        if part.have < size or part.digest != digest:
            await bring(part)
        if part.digest != digest and resumed:
            part.restart()
            await bring(part)
        if part.have != size or part.digest != digest:
            found = part.digest if part.have == size else f"{part.have} bytes"
            part.restart()
            raise invalid(
                f"what was sent for {digest} ({size} bytes) is something else",
                details=f"found {found}",
                hint="a broken registry or archive, or a proxy that changes what passes",
            )
        # not fsynced: after a power cut the hash finds it out
        os.rename(f"{path}.part", path)
        held = os.dup(descriptor)  # the same lock: it stays when the part's descriptor is closed
        # turning it into a shared one may let another in between: then find() settles it
        if _lock(held, fcntl.LOCK_SH) and _is_at(held, path):
            self._hold(digest, held)
        else:
            os.close(held)

    def _hold(self, digest: str, descriptor: int) -> None:
        """Two tasks of a pull may take up the same blob: one hold is enough."""
        if digest in self._held:
            os.close(descriptor)
        else:
            self._held[digest] = descriptor


@contextlib.asynccontextmanager
async def _exclusive_part(path: Path, waiting: Callable[[], None] | None) -> AsyncIterator[int]:
    """The part's descriptor, locked, and still at its name when the lock was got.

    It is looked at again and again and not waited for in a thread: a thread in flock(2) cannot be cancelled.
    """
    part = Path(f"{path}.part")
    hold = take(Rank.DOWNLOAD, path.name[:16])
    try:
        part.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.parent.mkdir(mode=0o700, exist_ok=True)
        deadline = asyncio.get_running_loop().time() + LOCK_WAIT_S
        while True:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if _lock(descriptor, fcntl.LOCK_EX):
                    if _is_at(descriptor, part):
                        try:
                            yield descriptor
                        finally:
                            if os.fstat(descriptor).st_size == 0 and _is_at(descriptor, part):
                                part.unlink()  # nothing to continue
                        return
                    continue  # renamed or pruned meanwhile: the next open makes or finds another
                if waiting is not None:
                    waiting()
                    waiting = None
            finally:
                os.close(descriptor)
            await _look_again(part, deadline)
    finally:
        drop(hold)


async def _look_again(path: Path, deadline: float) -> None:
    if asyncio.get_running_loop().time() >= deadline:
        raise ImageError(ErrorCode.BUSY, f"another process has held {path} for {LOCK_WAIT_S:.0f} s")
    await asyncio.sleep(_LOCK_LOOK_S)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    ours = os.fstat(descriptor)
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


async def _is_blob(descriptor: int, digest: str, size: int | None) -> bool:
    if size is not None and os.fstat(descriptor).st_size != size:
        return False
    stop = threading.Event()
    return await in_thread(lambda: _digest(descriptor, digest, stop), stop=stop.set) == digest


def _digest(descriptor: int, wanted: str, stop: threading.Event) -> str:
    """ "" when it was stopped."""
    algorithm = wanted.partition(":")[0]
    hasher = hashlib.new(algorithm)
    position = 0
    while chunk := os.pread(descriptor, CHUNK, position):
        if stop.is_set():
            return ""
        hasher.update(chunk)
        position += len(chunk)
    return f"{algorithm}:{hasher.hexdigest()}"


def _read_small(descriptor: int, limit: int, digest: str) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > limit:
        raise invalid(f"{digest} is larger than {limit >> 20} MiB")
    return os.pread(descriptor, size, 0)
