"""Images in a file: OCI layouts as tar, and what `docker save` writes, into the same cache as a registry's.

The file may be compressed. Its members are found by name (tarindex.py) and copied by digest: nothing is ever
unpacked to a path that the file names. What comes out is a PulledImage like any other; after a crash the
cache has blobs or parts, nothing else is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import IO, Annotated

import msgspec

from banger.errors import ErrorCode
from banger.image import compress
from banger.image.errors import ImageError, from_os_error, invalid
from banger.image.oci.blobs import Lease, Part
from banger.image.oci.config import MAX_CONFIG, MAX_LAYERS, ImageConfig, parse_config
from banger.image.oci.manifest import (
    DOCKER_LAYER,
    MAX_BLOB,
    MAX_MANIFEST,
    Descriptor,
    Index,
    Layer,
    Manifest,
    Platform,
    PulledImage,
    check_config,
    parse_manifest,
    this_platform,
)
from banger.image.oci.pull import STEP, Documents, choose
from banger.image.oci.reference import MAX_TEXT, is_digest, parse_reference
from banger.image.oci.tarindex import Member, TarIndex, read_index
from banger.image.staging import require_space
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.system.threads import in_thread

MAX_UNPACKED = MAX_BLOB
MAX_IMAGES = 256
_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
_SUFFIXES = {"none": "", "gzip": ".gzip", "zstd": ".zstd"}


async def load(
    file: IO[bytes],
    *,
    lease: Lease,
    name: str = "",
    what: str = "the archive",
    platform: Platform | None = None,
    progress: Progress = no_progress,
) -> PulledImage:
    """The image in an open, seekable file. name: which one, where there are several; what: for errors.

    Raises IMAGE_INVALID, NOT_FOUND (no such name, or nothing for this machine), INVALID_ARGUMENT (several
    and no name), NO_SPACE.
    """
    platform = platform or this_platform()
    progress(ProgressEvent(step=STEP, message=f"reading {what}"))
    with contextlib.ExitStack() as stack:
        try:
            plain = await _unpacked(file, stack, lease, what=what)
            index = await in_thread(lambda: read_index(plain, what=what))
            copier = _Copier(index, lease, what=what, progress=progress)
            if "oci-layout" in index and "index.json" in index:
                return await _load_layout(index, copier, name=name, what=what, platform=platform)
            if "manifest.json" in index:
                return await _load_docker(index, copier, name=name, what=what, platform=platform)
        except OSError as error:
            raise from_os_error(error, f"reading {what}") from error
    raise invalid(
        f"{what} is neither an OCI layout nor a docker archive",
        hint="`docker save`, `podman save` and `skopeo copy … oci-archive:FILE` write such",
    )


async def _unpacked(file: IO[bytes], stack: contextlib.ExitStack, lease: Lease, *, what: str) -> IO[bytes]:
    """The tar itself: the file, or a nameless temporary one beside the cache where it is compressed."""
    file.seek(0)
    kind = compress.recognise(file.read(8))
    if kind == "none":
        return file
    root = lease.cache.root
    await asyncio.to_thread(root.mkdir, mode=0o700, parents=True, exist_ok=True)
    out = stack.enter_context(tempfile.TemporaryFile(dir=root))  # noqa: SIM115 (the stack closes it)
    stop = threading.Event()

    def chunks() -> Iterator[bytes]:
        file.seek(0)
        while not stop.is_set() and (chunk := file.read(1 << 20)):
            yield chunk

    def unpack() -> None:
        written = 0
        for piece in compress.decompressed(chunks(), kind, limit=MAX_UNPACKED, what=what):
            if written % (64 << 20) < len(piece):
                require_space(root, 64 << 20, what=f"unpacking {what}")
            out.write(piece)
            written += len(piece)

    await in_thread(unpack, stop=stop.set)
    return out


class _Copier:
    """Files of the archive into the cache, with one progress for all."""

    def __init__(self, index: TarIndex, lease: Lease, *, what: str, progress: Progress) -> None:
        self._index = index
        self._lease = lease
        self._what = what
        self._progress = progress
        self._done = 0
        self._total = 0

    async def expect(self, members: Sequence[Member]) -> None:
        """What will be copied: for the progress, and refused where there is no room."""
        self._total = sum(member.size for member in members)
        root = self._lease.cache.root
        await asyncio.to_thread(root.mkdir, mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(require_space, root, self._total, what=f"reading {self._what}")

    async def keep(self, data: bytes, digest: str) -> None:
        await self._lease.put(digest, data)

    async def layer(self, member: Member, *, digest: str, diff_id: str, media_type: str) -> Layer:
        async def bring(part: Part) -> None:
            part.restart()
            pieces = self._index.chunks(member)
            while piece := await in_thread(lambda: next(pieces, b"")):
                await part.append(piece)

        path = await self._lease.obtain(digest, size=member.size, bring=bring)
        self._done += member.size
        self._progress(
            ProgressEvent(step=STEP, message=f"reading {self._what}", current=self._done, total=self._total)
        )
        return Layer(digest=digest, diff_id=diff_id, media_type=media_type, size=member.size, path=path)

    async def digest(self, member: Member) -> tuple[str, str]:
        """(digest, compression) of a file that only has a name."""
        stop = threading.Event()

        def hash_it() -> tuple[str, str]:
            hasher, kind = hashlib.sha256(), ""
            for piece in self._index.chunks(member):
                if stop.is_set():
                    break
                kind = kind or compress.recognise(piece[:8])
                hasher.update(piece)
            return f"sha256:{hasher.hexdigest()}", kind or "none"

        return await in_thread(hash_it, stop=stop.set)


# --- OCI layouts


class _Layout(Documents):
    def __init__(self, index: TarIndex, what: str) -> None:
        self.index = index
        self.what = what

    async def manifest(self, digest: str, media_type: str) -> Manifest | Index:
        data = read_blob(self.index, digest, limit=MAX_MANIFEST, what=self.what)
        return parse_manifest(data, content_type=media_type, what=self.what)


async def _load_layout(
    index: TarIndex, copier: _Copier, *, name: str, what: str, platform: Platform
) -> PulledImage:
    top = parse_manifest(index.read("index.json", limit=MAX_MANIFEST), what=what)
    if not isinstance(top, Index):
        raise invalid(f"index.json of {what} is no index")
    entry = _entry(top, name, what)
    found, digest = await choose(_Layout(index, what), entry.digest, platform, what=what)
    data = read_blob(index, found.config.digest, limit=MAX_CONFIG, what=what)
    config = parse_config(data, what=what)
    check_config(config, platform, layers=len(found.layers), what=what)
    await copier.keep(data, found.config.digest)
    members = [index.member(_blob_name(layer.digest)) for layer in found.layers]
    for layer, member in zip(found.layers, members, strict=True):
        if member.size != layer.size:
            raise invalid(f"{layer.digest} in {what} is {member.size} bytes, its manifest says {layer.size}")
    await copier.expect(members)
    layers = [
        await copier.layer(member, digest=layer.digest, diff_id=diff_id, media_type=layer.media_type)
        for layer, member, diff_id in zip(found.layers, members, config.diff_ids, strict=True)
    ]
    return PulledImage(
        reference=_plain(_title(entry) or name),
        digest=digest,
        pinned=entry.digest,
        config_digest=found.config.digest,
        config=config,
        layers=tuple(layers),
    )


def _entry(top: Index, name: str, what: str) -> Descriptor:
    """The one that is meant: by name, or the only one."""
    if not top.entries:
        raise invalid(f"{what} has no image")
    if name:
        for entry in top.entries:
            if name in (entry.digest, (entry.annotations or {}).get(_NAME)) or _same(name, _title(entry)):
                return entry
        raise _which(
            ErrorCode.NOT_FOUND,
            f"no image {name[:100]!a}",
            [_title(e) or e.digest for e in top.entries],
            what,
        )
    if len({entry.digest for entry in top.entries}) > 1:
        raise _which(
            ErrorCode.INVALID_ARGUMENT,
            "several images, and no name says which",
            [_title(entry) or entry.digest for entry in top.entries],
            what,
        )
    return top.entries[0]


def _title(entry: Descriptor) -> str:
    annotations = entry.annotations or {}
    return annotations.get(_FULL_NAME) or annotations.get(_NAME) or ""


def _same(name: str, other: str) -> bool:
    """Whether two names mean the same image, as `app` and `app:latest` do."""
    if name == other:
        return True
    try:
        return parse_reference(name) == parse_reference(other)
    except ImageError:
        return False


def _plain(name: str) -> str:
    """A stranger's name for the image, or "" where it could not be shown."""
    return name if name.isprintable() and len(name) <= MAX_TEXT else ""


def _which(code: ErrorCode, why: str, names: Sequence[str], what: str) -> ImageError:
    there = ", ".join(ascii(name[:100])[1:-1] for name in names[:20])
    return ImageError(code, f"{what} has {why}; it has: {there}")


def _blob_name(digest: str) -> str:
    algorithm, _, name = digest.partition(":")
    return f"blobs/{algorithm}/{name}"


def read_blob(index: TarIndex, digest: str, *, limit: int, what: str) -> bytes:
    """A small blob of a layout, checked."""
    data = index.read(_blob_name(digest), limit=limit)
    algorithm = digest.partition(":")[0]
    if f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}" != digest:
        raise invalid(f"{digest} in {what} is something else")
    return data


# --- docker archives


class _Saved(msgspec.Struct):
    config: str = msgspec.field(name="Config")
    layers: Annotated[list[str], msgspec.Meta(max_length=MAX_LAYERS)] = msgspec.field(name="Layers")
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)


_saved = msgspec.json.Decoder(Annotated[list[_Saved], msgspec.Meta(max_length=MAX_IMAGES)])


async def _load_docker(
    index: TarIndex, copier: _Copier, *, name: str, what: str, platform: Platform
) -> PulledImage:
    try:
        images = _saved.decode(index.read("manifest.json", limit=MAX_MANIFEST))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise invalid(f"manifest.json of {what} is not one: {error}"[:400]) from error
    image = _image(images, name, what)
    data = index.read(image.config, limit=MAX_CONFIG)
    config: ImageConfig = parse_config(data, what=what)
    check_config(config, platform, layers=len(image.layers), what=what)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    members = [index.member(name) for name in image.layers]
    await copier.expect(members)
    await copier.keep(data, digest)
    layers: list[Layer] = []
    for member, diff_id in zip(members, config.diff_ids, strict=True):
        found, kind = await copier.digest(member)
        if kind not in _SUFFIXES:
            raise invalid(f"a layer of {what} is compressed with {kind}")
        if kind == "none" and is_digest(diff_id) and diff_id.startswith("sha256:") and found != diff_id:
            raise invalid(f"a layer of {what} is something else than its config says", details=found)
        layers.append(
            await copier.layer(
                member, digest=found, diff_id=diff_id, media_type=f"{DOCKER_LAYER}{_SUFFIXES[kind]}"
            )
        )
    return PulledImage(
        reference=_plain(next(iter(image.tags or ()), name)),
        digest=digest,
        pinned=digest,
        config_digest=digest,
        config=config,
        layers=tuple(layers),
    )


def _image(images: Sequence[_Saved], name: str, what: str) -> _Saved:
    if not images:
        raise invalid(f"{what} has no image")
    names = [next(iter(image.tags or ()), image.config) for image in images]
    if name:
        for image in images:
            if name == image.config or any(_same(name, tag) for tag in image.tags or ()):
                return image
        raise _which(ErrorCode.NOT_FOUND, f"no image {name[:100]!a}", names, what)
    if len(images) > 1:
        raise _which(ErrorCode.INVALID_ARGUMENT, "several images, and no name says which", names, what)
    return images[0]
