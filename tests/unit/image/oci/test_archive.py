"""Images in files: as others write them, and as an enemy would."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.image.errors import ImageError
from banger.image.oci import manifest as m
from banger.image.oci.archive import load
from banger.image.oci.blobs import BlobCache
from banger.image.oci.manifest import PulledImage
from banger.image.oci.tarindex import MAX_MEMBERS, read_index
from tests.fakes.registry import digest_of, tar_of

pytestmark = pytest.mark.anyio

ONE, TWO = tar_of({"a": b"one"}), tar_of({"b": b"two"})
CONFIG = json.dumps(
    {
        "architecture": m.this_platform().architecture,
        "os": "linux",
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(ONE), digest_of(TWO)]},
    }
).encode()


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "blobs")


def described(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


def layout(*names: str, spoil: bytes = b"", **manifest: Any) -> dict[str, bytes]:
    """The members of an OCI layout with one image (of each name)."""
    blobs = [CONFIG, gzip.compress(ONE), zstd.compress(TWO)]
    document = {
        "schemaVersion": 2,
        "mediaType": m.OCI_MANIFEST,
        "config": described(CONFIG, m.OCI_CONFIG),
        "layers": [described(blobs[1], f"{m.OCI_LAYER}+gzip"), described(blobs[2], f"{m.OCI_LAYER}+zstd")],
        **manifest,
    }
    entries = []
    for name in names or ("",):
        data = json.dumps({**document, "annotations": {"n": name}}).encode()
        blobs.append(data)
        entries.append(
            described(data, m.OCI_MANIFEST, annotations={"org.opencontainers.image.ref.name": name})
        )
    members = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": entries}).encode(),
    }
    for blob in blobs:
        members[f"blobs/sha256/{digest_of(blob)[7:]}"] = spoil or blob
    return members


def saved(*images: dict[str, Any], **members: bytes) -> dict[str, bytes]:
    documents = images or ({"Config": "c.json", "RepoTags": ["app:v1"], "Layers": ["one.tar", "two.tar"]},)
    return {
        "c.json": CONFIG,
        "one.tar": ONE,
        "two.tar": TWO,
        "manifest.json": json.dumps(documents).encode(),
        **members,
    }


async def read(cache: BlobCache, data: bytes, **more: Any) -> PulledImage:
    with cache.lease() as lease:
        image = await load(io.BytesIO(data), lease=lease, what="x.tar", **more)
        for layer in image.layers:
            content = layer.path.read_bytes()
            assert f"sha256:{hashlib.sha256(content).hexdigest()}" == layer.digest
            assert len(content) == layer.size
        return image


async def refused(cache: BlobCache, data: bytes, **more: Any) -> BangerError:
    with pytest.raises(BangerError) as caught:
        await read(cache, data, **more)
    assert caught.value.brief.isprintable()
    assert "x.tar" in caught.value.brief or "blob" in caught.value.brief or "sent" in caught.value.brief
    return caught.value


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
async def test_a_layout(cache: BlobCache, pack: Any) -> None:
    image = await read(cache, pack(tar_of(layout("v1"))))
    assert [layer.diff_id for layer in image.layers] == [digest_of(ONE), digest_of(TWO)]
    assert [layer.media_type.rpartition("+")[2] for layer in image.layers] == ["gzip", "zstd"]
    assert image.reference == "v1"
    assert image.config.cmd == ("sh",)
    assert {path.name for path in cache.root.iterdir()} == {"sha256"}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
async def test_a_docker_archive(cache: BlobCache, pack: Any) -> None:
    image = await read(cache, pack(tar_of(saved())))
    assert [layer.digest for layer in image.layers] == [digest_of(ONE), digest_of(TWO)]
    assert image.reference == "app:v1"
    assert image.digest == image.config_digest == digest_of(CONFIG)
    again = await read(cache, tar_of(saved()), name="app:v1")
    assert again == image


async def test_compressed_layers_and_links_in_a_docker_archive(cache: BlobCache) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        members = saved({"Config": "c.json", "Layers": ["x/layer.tar", "two.tar"]})
        members["two.tar"] = gzip.compress(TWO)
        members["y/" + "long" * 50] = members.pop("one.tar")
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("x/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../y/" + "long" * 50
        archive.addfile(link)
    image = await read(cache, out.getvalue())
    assert image.layers[0].digest == digest_of(ONE)
    assert image.layers[1].media_type.endswith(".gzip")


async def test_several_images(cache: BlobCache) -> None:
    data = tar_of(layout("one", "two"))
    error = await refused(cache, data)
    assert error.code is ErrorCode.INVALID_ARGUMENT
    assert error.brief.endswith("it has: one, two")
    assert (await refused(cache, data, name="three")).code is ErrorCode.NOT_FOUND
    assert (await read(cache, data, name="two")).reference == "two"
    image = {"Config": "c.json", "Layers": ["one.tar", "two.tar"]}
    data = tar_of(saved({**image, "RepoTags": ["a:latest"]}, {**image, "RepoTags": ["b:1"]}))
    assert "it has: a:latest, b:1" in (await refused(cache, data)).brief
    assert (await read(cache, data, name="a")).reference == "a:latest"


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"some": b"thing"}, "neither an OCI layout nor"),
        ({**layout(), "index.json": b"{"}, "is not one"),
        ({**layout(), "index.json": b'{"schemaVersion":2,"manifests":[]}'}, "has no image"),
        (layout(spoil=b"other"), "is something else"),
        (layout(layers=[described(b"not there", m.OCI_LAYER)] * 2), "has no file"),
        (layout(layers=[{**described(gzip.compress(ONE), m.OCI_LAYER), "size": 3}] * 2), "manifest says 3"),
        (layout(layers=[]), "has 0 layers, and its config speaks of 2"),
        (saved({"Config": "../../etc/passwd", "Layers": []}), "has no file"),
        (saved({"Config": "/etc/passwd", "Layers": []}), "has no file"),
        (saved({"Config": "c.json", "Layers": ["one.tar", "one.tar"]}), "than its config says"),
        (saved({"Config": "c.json", "Layers": ["one.tar"] * 500}), "is not one"),
        (saved(**{"manifest.json": b"[]"}), "has no image"),
        (saved(**{"manifest.json": b"[{}]"}), "is not one"),
        (saved(**{"manifest.json": b"[" * 100_000}), "is not one"),
        (saved(**{"c.json": b" " * (5 << 20)}), "larger than"),
        (saved(**{"two.tar": b"BZh9" + b"0" * 50}), "compressed with bzip2"),
    ],
)
async def test_hostile_archives(cache: BlobCache, members: dict[str, bytes], why: str) -> None:
    error = await refused(cache, tar_of(members))
    assert error.code is ErrorCode.IMAGE_INVALID
    assert why in error.brief


def member(kind: bytes = b"0", *, name: str = "x", size: int = 0, link: str = "", body: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    block = info.tobuf(tarfile.GNU_FORMAT)
    return block + body + b"\0" * (-len(body) % 512)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is no tar file"),
        (b"\0" * 2048, "is no tar file"),
        (b"x" * 2048, "is no tar file"),
        (member(size=1 << 40), "ends in the middle of a member"),
        (member(size=1 << 80), "ends in the middle of a member"),
        (member(b"3", name="dev"), "has a member of kind b'3', 'dev'"),
        (member(b"L", size=2 << 20, body=b"n" * (2 << 20)), "extended header of"),
        (member(b"x", size=6, body=b"99 a=b"), "broken extended header"),
        (member(b"x", size=4, body=b"4 ab"), "broken extended header"),
        (member(b"x", size=13, body=b"13 size=-100\n"), "neither"),
        (member(b"x", size=13, body=b"13 size=-100\n") + member(), "broken extended header"),
        (member(b"x", size=26, body=b"26 GNU.sparse.realsize=99\n") + member(), "sparse member"),
        (member(b"2", name="manifest.json", link="manifest.json"), "in circles"),
        (member() * (MAX_MEMBERS + 1), "more than"),
    ],
)
async def test_hostile_tars(cache: BlobCache, data: bytes, why: str) -> None:
    error = await refused(cache, data)
    assert error.code is ErrorCode.IMAGE_INVALID
    assert why in error.brief


async def test_a_truncated_compressed_archive_leaves_nothing(cache: BlobCache) -> None:
    data = gzip.compress(tar_of(layout()))
    error = await refused(cache, data[:-50])
    assert error.code is ErrorCode.IMAGE_INVALID
    assert [path for path in cache.root.rglob("*") if path.is_file()] == []


@given(
    st.binary(max_size=3000),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=6),
)
def test_any_bytes_are_walked_or_refused(tail: bytes, changes: Sequence[tuple[int, int]]) -> None:
    data = bytearray(tar_of({"a": b"one", "b" * 200: b"two"}) + tail)
    for place, value in changes:
        data[place] = value
    with contextlib.suppress(ImageError):
        index = read_index(io.BytesIO(data), what="x.tar")
        for name in ("a", "b" * 200, "../a"):
            with contextlib.suppress(ImageError):
                assert len(index.read(name, limit=4096)) <= 4096


async def test_a_cancelled_load_holds_nothing(cache: BlobCache) -> None:
    data = tar_of(layout())

    async def whole() -> None:
        with cache.lease() as lease:
            await load(io.BytesIO(data), lease=lease)

    for steps in range(12):
        task = asyncio.create_task(whole())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert cache.prune().in_use == ()
