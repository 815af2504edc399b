"""Pulling an image by reference: manifest, config and layers into the cache, each checked by its digest.

Nothing is fetched that the cache has: a pull by digest of a cached image asks the registry nothing, one by
tag only which digest the tag has. Layers come several at once. The caller's lease keeps every blob until it
has used them; after a crash the parts stay in the cache and the next pull continues them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

from banger.errors import BangerError, ErrorCode
from banger.image.errors import from_os_error, invalid
from banger.image.oci.blobs import Lease, Part
from banger.image.oci.config import MAX_CONFIG, ImageConfig, parse_config
from banger.image.oci.endpoint import Access
from banger.image.oci.manifest import (
    INDEXES,
    MANIFESTS,
    MAX_MANIFEST,
    Descriptor,
    Index,
    Layer,
    Manifest,
    Platform,
    PulledImage,
    candidates,
    check_config,
    no_platform,
    parse_manifest,
    this_platform,
)
from banger.image.oci.reference import Reference, parse_reference
from banger.image.oci.registry import Registry
from banger.image.oci.transport import Sleep
from banger.image.staging import require_space
from banger.model.progress import Progress, ProgressEvent, no_progress

STEP = "pull"
PARALLEL = 3
"""Layers at once, as docker has it."""
PROGRESS_STEP = 1 << 20
MAX_LOOKS = 8
"""Documents that are looked into to find this machine's image: indexes may be nested."""


async def pull(
    reference: Reference | str,
    *,
    lease: Lease,
    access: Access,
    platform: Platform | None = None,
    progress: Progress = no_progress,
    sleep: Sleep = asyncio.sleep,
) -> PulledImage:
    """Bring an image of this machine's kind into the lease's cache.

    Raises INVALID_ARGUMENT (no reference), NOT_FOUND (no such image, or not for this machine),
    PERMISSION_DENIED, DOWNLOAD_FAILED, IMAGE_INVALID, NO_SPACE.
    """
    if isinstance(reference, str):
        reference = parse_reference(reference)
    what = str(reference)
    platform = platform or this_platform()

    def tell(text: str) -> None:
        progress(ProgressEvent(step=STEP, message=f"pulling {what}: {text}"))

    progress(ProgressEvent(step=STEP, message=f"pulling {what}"))
    async with Registry.open(reference, access, tell=tell, sleep=sleep) as registry:
        source = _Source(registry, lease, what)
        pinned = await source.resolve(reference)
        manifest, digest = await choose(source, pinned, platform, what=what)
        config = await source.config(manifest.config)
        check_config(config, platform, layers=len(manifest.layers), what=what)
        paths = await _Downloads(registry, lease, what=what, progress=progress).all(manifest.layers)
    return PulledImage(
        reference=what,
        digest=digest,
        pinned=pinned,
        config_digest=manifest.config.digest,
        config=config,
        layers=tuple(
            Layer(
                digest=layer.digest,
                diff_id=diff_id,
                media_type=layer.media_type,
                size=layer.size,
                path=paths[layer.digest],
            )
            for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        ),
    )


class Documents:
    """Where manifests come from: a registry with a cache before it, or an archive."""

    async def manifest(self, digest: str, media_type: str) -> Manifest | Index:
        """By digest, checked. media_type: what named it, or ""."""
        raise NotImplementedError


async def choose(documents: Documents, digest: str, platform: Platform, *, what: str) -> tuple[Manifest, str]:
    """Follow indexes from `digest` to this platform's manifest, and that one's digest."""
    queue = [Descriptor(digest=digest, size=0)]
    seen: set[str] = set()
    passed: list[Descriptor] = []
    while queue:
        entry = queue.pop(0)
        if entry.digest in seen:
            continue
        seen.add(entry.digest)
        if len(seen) > MAX_LOOKS:
            raise invalid(f"the index of {what} leads through more than {MAX_LOOKS} others")
        found = await documents.manifest(entry.digest, entry.media_type)
        if isinstance(found, Manifest):
            return found, entry.digest
        passed += found.entries
        try:
            queue = [*candidates(found, platform, what=what), *queue]
        except BangerError as error:
            if error.code is not ErrorCode.NOT_FOUND or not queue:
                raise no_platform(passed, platform, what=what) from error
    raise no_platform(passed, platform, what=what)


class _Source(Documents):
    """A registry behind its cache."""

    def __init__(self, registry: Registry, lease: Lease, what: str) -> None:
        self._registry = registry
        self._lease = lease
        self._what = what
        self._types: dict[str, str] = {}

    async def resolve(self, reference: Reference) -> str:
        """The digest of what the reference means; its document may be in the cache then."""
        digest = await self._registry.resolve()
        if digest:
            return digest
        data, content_type = await self._registry.manifest(reference.tag)
        parse_manifest(data, content_type=content_type, what=self._what)  # before it is kept
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._types[digest] = content_type
        await self._lease.put(digest, data)
        return digest

    async def manifest(self, digest: str, media_type: str) -> Manifest | Index:
        data = await self._lease.read(digest, limit=MAX_MANIFEST)
        declared = media_type if media_type in INDEXES or media_type in MANIFESTS else ""
        if data is None:
            data, content_type = await self._registry.manifest(digest)
            parse_manifest(data, content_type=content_type, what=self._what)  # before it is kept
            declared = declared or content_type
            await self._lease.put(digest, data)
        return parse_manifest(data, content_type=declared or self._types.get(digest, ""), what=self._what)

    async def config(self, descriptor: Descriptor) -> ImageConfig:
        if descriptor.size > MAX_CONFIG:
            raise invalid(f"the config of {self._what} is larger than {MAX_CONFIG >> 20} MiB")

        async def bring(part: Part) -> None:
            await self._registry.bring(part, descriptor.digest, counted=lambda _count: None)

        await self._lease.obtain(descriptor.digest, size=descriptor.size, bring=bring)
        data = await self._lease.read(descriptor.digest, limit=MAX_CONFIG)
        assert data is not None, "a blob that is held is there"
        return parse_config(data, what=self._what)


class _Downloads:
    """The layers of one pull: at most PARALLEL at once, one progress for all."""

    def __init__(self, registry: Registry, lease: Lease, *, what: str, progress: Progress) -> None:
        self._registry = registry
        self._lease = lease
        self._what = what
        self._progress = progress
        self._slots = asyncio.Semaphore(PARALLEL)
        self._total = 0
        self._done = 0
        self._told = -PROGRESS_STEP

    async def all(self, layers: Sequence[Descriptor]) -> dict[str, Path]:
        """digest → file. The first failure ends the others, whose parts stay for the next pull."""
        wanted = {layer.digest: layer for layer in layers}
        if any(wanted[layer.digest].size != layer.size for layer in layers):
            raise invalid(f"{self._what} names one layer with two sizes")
        self._total = sum(layer.size for layer in wanted.values())
        missing = [layer for layer in wanted.values() if not self._lease.cache.path(layer.digest).exists()]
        await self._require_space(missing)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {digest: group.create_task(self._one(layer)) for digest, layer in wanted.items()}
        except BaseExceptionGroup as failures:
            raise first_of(failures) from failures
        self._tell()
        return {digest: task.result() for digest, task in tasks.items()}

    async def _one(self, layer: Descriptor) -> Path:
        before = 0

        def counted(count: int) -> None:
            nonlocal before
            before += count
            self._count(count)

        async def bring(part: Part) -> None:
            counted(part.have - before)
            await self._registry.bring(part, layer.digest, counted=counted)

        async with self._slots:
            path = await self._lease.obtain(
                layer.digest,
                size=layer.size,
                bring=bring,
                waiting=lambda: self._tell(" (another pull is bringing a layer of it)"),
            )
        self._count(layer.size - before)
        return path

    def _count(self, count: int) -> None:
        self._done += count
        if self._done >= self._told + PROGRESS_STEP:
            self._tell()

    def _tell(self, more: str = "") -> None:
        self._told = self._done
        self._progress(
            ProgressEvent(
                step=STEP, message=f"pulling {self._what}{more}", current=self._done, total=self._total
            )
        )

    async def _require_space(self, missing: Sequence[Descriptor]) -> None:
        if not missing:
            return
        root = self._lease.cache.root
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, f"making {root}") from error
        needed = sum(layer.size for layer in missing)
        await asyncio.to_thread(require_space, root, needed, what=f"pulling {self._what}")


def first_of(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of what failed together: one of banger's errors where there is one, else the first."""
    flat: list[BaseException] = []
    waiting: list[BaseException] = [failures]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        else:
            flat.append(one)
    return next((one for one in flat if isinstance(one, BangerError)), flat[0])
