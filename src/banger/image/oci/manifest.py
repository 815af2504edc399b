"""Manifests and indexes, decoded with bounds; an index's image for this machine; what a pull gives.

Pure. OCI's and Docker's media types are known; anything else is refused by its name. Every number and
string in these documents is a stranger's: counts and sizes are limited, digests must look like ones, and a
document that could be read in two ways is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from banger.errors import ErrorCode
from banger.image.errors import ImageError, invalid
from banger.image.oci.config import MAX_LAYERS, ImageConfig
from banger.image.oci.reference import is_digest

MAX_MANIFEST = 4 << 20
"""Bytes; what registries themselves accept."""
MAX_ENTRIES = 1024
MAX_BLOB = 128 << 30
"""Bytes of one layer or of all of an image's: the largest disk a VM can have (SPEC §1)."""

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYERS: dict[str, str] = {
    OCI_LAYER: "none",
    f"{OCI_LAYER}+gzip": "gzip",
    f"{OCI_LAYER}+zstd": "zstd",
    DOCKER_LAYER: "none",
    f"{DOCKER_LAYER}.gzip": "gzip",
    f"{DOCKER_LAYER}.zstd": "zstd",
}
"""A layer's media type → its compression, in compress.py's words. What tools call it is not always what it
is: whoever reads a layer goes by its first bytes, and by diff_id."""
ACCEPT = ", ".join([OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST])

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_EXPLAINED = {
    "application/vnd.docker.distribution.manifest.v1+json": "Docker's schema 1, gone since 2019",
    "application/vnd.docker.distribution.manifest.v1+prettyjws": "Docker's schema 1, gone since 2019",
}
_UNDECLARED = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
"""Content types of registries that do not say: the document itself decides."""


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of a pulled image. digest and size (bytes): of the file at path; diff_id: of the tar in it."""

    digest: str
    diff_id: str
    media_type: str
    size: int
    path: Path


class PulledImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image whose every blob is in the cache, checked. layers: the oldest first.

    digest: of this machine's manifest (of the config, where an archive has no manifest): the same digest is
    the same image. pinned: what the reference meant, maybe an index of several machines' images.
    """

    reference: str
    digest: str
    pinned: str
    config_digest: str
    config: ImageConfig
    layers: tuple[Layer, ...]


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(_word(part) for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A blob as a document names it. annotations: only what OCI layouts need is used."""

    media_type: str = ""
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOB)]
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """layers: the oldest first; every media type in it is a known one."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


class Index(msgspec.Struct, frozen=True, kw_only=True):
    media_type: str
    entries: tuple[Descriptor, ...]


class _Document(msgspec.Struct, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    config: Descriptor | None = None
    layers: Annotated[list[Descriptor], msgspec.Meta(max_length=MAX_LAYERS)] | None = None
    manifests: Annotated[list[Descriptor], msgspec.Meta(max_length=MAX_ENTRIES)] | None = None


_decoder = msgspec.json.Decoder(_Document)


def parse_manifest(data: bytes, *, content_type: str = "", what: str) -> Manifest | Index:
    """content_type: what the registry or the descriptor calls it; what: names the image in errors."""
    if len(data) > MAX_MANIFEST:
        raise invalid(f"the manifest of {what} is larger than {MAX_MANIFEST >> 20} MiB")
    declared = content_type.partition(";")[0].strip().lower()
    if declared not in INDEXES | MANIFESTS | _UNDECLARED:
        raise _unknown(what, declared)
    try:
        document = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise invalid(f"the manifest of {what} is not one: {error}"[:400]) from error
    kind = _kind(document, declared, what)
    if document.schema_version != 2:
        raise invalid(f"the manifest of {what} has schema version {document.schema_version}, not 2")
    if kind in INDEXES:
        if document.manifests is None or document.layers is not None or document.config is not None:
            raise invalid(f"the index of {what} is ambiguous: it is not an index and nothing else")
        _check_digests(document.manifests, what)
        return Index(media_type=kind, entries=tuple(document.manifests))
    if document.config is None or document.layers is None or document.manifests is not None:
        raise invalid(f"the manifest of {what} is ambiguous: it is not a manifest and nothing else")
    _check_digests([document.config, *document.layers], what)
    if document.config.media_type not in CONFIGS:
        raise invalid(
            f"{what} is no image of a file system: its config is of type {_word(document.config.media_type)}"
        )
    for number, layer in enumerate(document.layers, 1):
        if layer.media_type not in LAYERS:
            raise invalid(f"layer {number} of {what} is of an unknown type: {_word(layer.media_type)}")
    if sum(layer.size for layer in document.layers) > MAX_BLOB:
        raise invalid(f"the layers of {what} are larger than {MAX_BLOB >> 30} GiB together")
    return Manifest(media_type=kind, config=document.config, layers=tuple(document.layers))


def this_platform(machine: str = "") -> Platform:
    """machine: as uname says it; this one's by default."""
    machine = machine or os.uname().machine
    return Platform(os="linux", architecture=MACHINES.get(machine, machine))


def candidates(index: Index, platform: Platform, *, what: str) -> list[Descriptor]:
    """The entries that may hold this platform's image, the most promising first; NOT_FOUND names the others.

    An entry without a platform (layouts have such), or an index within the index, must be looked into.
    Of an architecture's variants the oldest comes first: it runs on every machine.
    """
    fitting = [entry for entry in index.entries if _fits(entry, platform)]
    fitting.sort(key=lambda entry: _variant(entry.platform))
    unsaid = [
        entry
        for entry in index.entries
        if entry.platform is None and (entry.media_type in INDEXES or entry.media_type in MANIFESTS)
    ]
    if not fitting and not unsaid:
        raise no_platform(index.entries, platform, what=what)
    return [*fitting, *unsaid]


def no_platform(entries: Sequence[Descriptor], platform: Platform, *, what: str) -> ImageError:
    there = dict.fromkeys(
        str(entry.platform) for entry in entries if entry.platform and entry.platform.os != "unknown"
    )
    has = ", ".join(list(there)[:20]) or "none that says what it is for"
    return ImageError(ErrorCode.NOT_FOUND, f"{what} has no image for {platform}; it has: {has}")


def check_config(config: ImageConfig, platform: Platform, *, layers: int, what: str) -> None:
    """A config that fits its manifest and this machine."""
    own = Platform(os=config.os, architecture=config.architecture, variant=config.variant)
    if (config.os or platform.os) != platform.os or (
        config.architecture or platform.architecture
    ) != platform.architecture:
        raise ImageError(ErrorCode.NOT_FOUND, f"{what} is for {own}, not for {platform}")
    if len(config.diff_ids) != layers:
        raise invalid(f"{what} has {layers} layers, and its config speaks of {len(config.diff_ids)}")


def _kind(document: _Document, declared: str, what: str) -> str:
    """The document's own word first; where it has none, the registry's; where that has none, its shape."""
    own = document.media_type
    if own and own not in INDEXES | MANIFESTS:
        raise _unknown(what, own)
    if own and declared not in _UNDECLARED and own != declared:
        raise invalid(f"the manifest of {what} says that it is {_word(own)}, its registry {_word(declared)}")
    if own or declared not in _UNDECLARED:
        return own or declared
    if document.schema_version == 1:
        raise _unknown(what, "application/vnd.docker.distribution.manifest.v1+json")
    return OCI_INDEX if document.manifests is not None else OCI_MANIFEST


def _check_digests(descriptors: Sequence[Descriptor], what: str) -> None:
    for descriptor in descriptors:
        if not is_digest(descriptor.digest):
            raise invalid(f"the manifest of {what} names a digest that is none: {_word(descriptor.digest)}")


def _fits(entry: Descriptor, platform: Platform) -> bool:
    found = entry.platform
    return (
        found is not None
        and (entry.media_type in MANIFESTS or entry.media_type in INDEXES)
        and found.os == platform.os
        and found.architecture == platform.architecture
    )


def _variant(platform: Platform | None) -> int:
    found = re.fullmatch(r"v(\d{1,3})", platform.variant if platform else "", re.ASCII)
    return int(found[1]) if found else 0


def _unknown(what: str, media_type: str) -> ImageError:
    why = _EXPLAINED.get(media_type)
    return invalid(
        f"{what} is of an unknown type: {_word(media_type)}" + (f" ({why})" if why else ""),
        hint="banger takes images in OCI's and in Docker's schema 2 form",
    )


def _word(text: str) -> str:
    """A stranger's word in an error: short, and nothing a terminal could act upon."""
    return ascii(text[:100])[1:-1] or "(none)"
