"""Pulling from a real registry what other people's tools have made and pushed."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from backports import zstd

from banger.config.settings import Registry
from banger.errors import BangerError, ErrorCode
from banger.image import compress
from banger.image.flatten import flatten
from banger.image.oci import manifest as m
from banger.image.oci.archive import load
from banger.image.oci.blobs import BlobCache
from banger.image.oci.endpoint import Access
from banger.image.oci.manifest import PulledImage
from banger.image.oci.pull import pull
from tests.capabilities import require
from tests.fakes.registry import FakeRegistry, digest_of, noise, tar_of
from tests.realregistry import ANN, Maker, RealRegistry, TokenServer, make_certificate

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.host,
    require("docker-registry", "skopeo", "umoci", "htpasswd", "pzstd"),
]

LAYERS: list[dict[str, bytes] | Path] = [
    {"bin/sh": noise(200_000), "etc/os-release": b"ID=test\n"},
    {"etc/motd": b"hello", "bin/.wh.gone": b""},
]
CONFIG = [
    "--config.cmd",
    "/bin/sh",
    "--config.env",
    "A=b",
    "--config.user",
    "7:8",
    "--config.workingdir",
    "/srv",
]
ELSEWHERE = "192.0.2.10"
"""An address that is not loopback, so that the rules for strangers hold; in the test's own namespace."""


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "blobs")


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "made")


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[RealRegistry]:
    async with RealRegistry(tmp_path / "registry").serving() as made:
        yield made


@pytest.fixture
def elsewhere(netns: None) -> None:
    subprocess.run(["ip", "addr", "add", f"{ELSEWHERE}/32", "dev", "lo"], check=True, timeout=30)


async def bring(name: str, cache: BlobCache, **access: Any) -> PulledImage:
    with cache.lease() as lease:
        image = await pull(name, lease=lease, access=Access(**access))
        check_layers(image)
        return image


def check_layers(image: PulledImage) -> None:
    """Each blob is what its digest says, and unpacks to what its diff_id says."""
    for layer in image.layers:
        data = layer.path.read_bytes()
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == layer.digest
        kind = compress.recognise(data[:8])
        assert kind == m.LAYERS[layer.media_type]
        plain = b"".join(compress.decompressed([data], kind, limit=1 << 30, what="a layer"))
        assert f"sha256:{hashlib.sha256(plain).hexdigest()}" == layer.diff_id


async def refused(name: str, cache: BlobCache, **access: Any) -> BangerError:
    with pytest.raises(BangerError) as caught:
        await bring(name, cache, **access)
    return caught.value


async def test_what_tools_push(registry: RealRegistry, maker: Maker, cache: BlobCache) -> None:
    made = await maker.image("one", LAYERS, config=CONFIG)
    pushed = {
        "oci": await maker.push(made, registry, "team/app:oci"),
        "docker": await maker.push(made, registry, "team/app:docker", "--format", "v2s2"),
        "zstd": await maker.push(made, registry, "team/app:zstd", "--dest-compress-format", "zstd"),
    }
    diff_ids = set()
    for tag, digest in pushed.items():
        image = await bring(f"{registry.address}/team/app:{tag}", cache)
        assert image.digest == image.pinned == digest
        assert image.config.cmd == ("/bin/sh",)
        assert "A=b" in image.config.env
        assert (image.config.user, image.config.working_dir) == ("7:8", "/srv")
        diff_ids.add(tuple(layer.diff_id for layer in image.layers))
        assert (await bring(f"{registry.address}/team/app@{digest}", cache)).layers == image.layers
    assert len(diff_ids) == 1, "the same content, however it is packed"


async def test_what_is_not_there(registry: RealRegistry, cache: BlobCache) -> None:
    error = await refused(f"{registry.address}/team/app:none", cache)
    assert error.code is ErrorCode.NOT_FOUND
    assert "team/app:none" in error.brief


async def put_index(registry: RealRegistry, name: str, entries: list[dict[str, Any]]) -> None:
    body = {"schemaVersion": 2, "mediaType": m.OCI_INDEX, "manifests": entries}
    async with (
        aiohttp.ClientSession() as session,
        session.put(
            f"http://{registry.address}/v2/{name.replace(':', '/manifests/')}",
            data=json.dumps(body),
            headers={"Content-Type": m.OCI_INDEX},
        ) as response,
    ):
        assert response.status == 201, await response.text()


async def test_an_index_of_machines(registry: RealRegistry, maker: Maker, cache: BlobCache) -> None:
    here = m.this_platform()
    entries: list[dict[str, Any]] = []
    for architecture in ("s390x", here.architecture):
        content: list[dict[str, bytes] | Path] = [{"arch": architecture.encode()}]
        made = await maker.image(architecture, content, config=["--architecture", architecture])
        digest = await maker.push(made, registry, f"app:{architecture}")
        size = len(await raw_manifest(registry, "app", digest))
        entries.append({"mediaType": m.OCI_MANIFEST, "digest": digest, "size": size})
        entries[-1]["platform"] = {"os": "linux", "architecture": architecture}
    await put_index(registry, "app:all", entries)
    image = await bring(f"{registry.address}/app:all", cache)
    assert image.digest == entries[1]["digest"] != image.pinned
    await put_index(registry, "app:foreign", entries[:1])
    error = await refused(f"{registry.address}/app:foreign", cache)
    assert error.brief.endswith("it has: linux/s390x")


async def raw_manifest(registry: RealRegistry, name: str, digest: str) -> bytes:
    async with (
        aiohttp.ClientSession() as session,
        session.get(
            f"http://{registry.address}/v2/{name}/manifests/{digest}", headers={"Accept": m.ACCEPT}
        ) as response,
    ):
        return await response.read()


async def test_accounts(tmp_path: Path, maker: Maker, cache: BlobCache) -> None:
    accounts = {ANN.username: ANN.password}
    async with RealRegistry(tmp_path / "registry", accounts=accounts).serving() as registry:
        digest = await maker.push(await maker.image("one", LAYERS), registry, "app:v1")
        name = f"{registry.address}/app:v1"
        assert (await refused(name, cache)).code is ErrorCode.PERMISSION_DENIED
        assert (await bring(name, cache, credentials={registry.address: ANN})).digest == digest


async def test_tokens(tmp_path: Path, maker: Maker, cache: BlobCache) -> None:
    async with (
        TokenServer(tmp_path / "tokens").serving() as tokens,
        RealRegistry(tmp_path / "registry", tokens=tokens).serving() as registry,
    ):
        made = await maker.image("one", LAYERS)
        digest = await maker.push(made, registry, "public/app:v1")
        await maker.push(made, registry, "private/app:v1")
        tokens.granted.clear()
        assert (await bring(f"{registry.address}/public/app:v1", cache)).digest == digest
        assert tokens.granted == ["repository:public/app:pull"]
        private = f"{registry.address}/private/app:v1"
        assert (await refused(private, cache)).code is ErrorCode.PERMISSION_DENIED
        assert (await bring(private, cache, credentials={registry.address: ANN})).digest == digest


async def test_tls_and_strangers(elsewhere: None, tmp_path: Path, maker: Maker, cache: BlobCache) -> None:
    certificate, key = make_certificate(tmp_path, ELSEWHERE)
    serving = RealRegistry(
        tmp_path / "registry",
        ip=ELSEWHERE,
        certificate=certificate,
        key=key,
        accounts={ANN.username: ANN.password},
    ).serving()
    async with serving as registry:
        digest = await maker.push(await maker.image("one", LAYERS), registry, "app:v1")
        name, ours = f"{registry.address}/app:v1", {registry.address: ANN}
        error = await refused(name, cache, credentials=ours)
        assert error.code is ErrorCode.DOWNLOAD_FAILED
        assert "no trusted connection" in error.brief
        insecure = (Registry(host=registry.address, insecure=True),)
        assert (await bring(name, cache, credentials=ours, registries=insecure)).digest == digest
        certificates = tmp_path / "certs.d" / registry.address
        certificates.mkdir(parents=True)
        (certificates / "ca.crt").write_bytes(certificate.read_bytes())
        trusting = {"certificate_dirs": (certificates.parent,), "credentials": ours}
        assert (await bring(name, BlobCache(tmp_path / "other"), **trusting)).digest == digest


async def test_no_http_to_strangers(elsewhere: None, tmp_path: Path, maker: Maker, cache: BlobCache) -> None:
    async with RealRegistry(tmp_path / "registry", ip=ELSEWHERE).serving() as registry:
        digest = await maker.push(await maker.image("one", LAYERS), registry, "app:v1")
        name = f"{registry.address}/app:v1"
        assert (await refused(name, cache)).code is ErrorCode.DOWNLOAD_FAILED
        insecure = (Registry(host=registry.address, insecure=True),)
        assert (await bring(name, cache, registries=insecure)).digest == digest


async def test_tls_on_loopback_needs_no_certificate(tmp_path: Path, maker: Maker, cache: BlobCache) -> None:
    certificate, key = make_certificate(tmp_path)
    async with RealRegistry(tmp_path / "registry", certificate=certificate, key=key).serving() as registry:
        digest = await maker.push(await maker.image("one", LAYERS), registry, "app:v1")
        assert (await bring(f"{registry.address}/app:v1", cache)).digest == digest


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
async def test_files_that_tools_write(maker: Maker, tmp_path: Path, cache: BlobCache, kind: str) -> None:
    made = await maker.image("one", LAYERS, config=CONFIG)
    name = "localhost/app:v1"
    await maker.save(made, kind, tmp_path / "image.tar", name)
    packed = tmp_path / "image.tar.zst"
    packed.write_bytes(zstd.compress((tmp_path / "image.tar").read_bytes()))
    for path in (tmp_path / "image.tar", packed):
        with path.open("rb") as file, cache.lease() as lease:
            image = await load(file, lease=lease, what=path.name, name=name)
            check_layers(image)
            assert image.reference == name
            assert image.config.cmd == ("/bin/sh",)
            assert image.config.user == "7:8"


async def test_zstd_that_begins_with_a_skippable_frame(tmp_path: Path, cache: BlobCache) -> None:
    """As pzstd writes it, and with a table of contents behind it, as zstd:chunked has it."""
    content = tar_of({"etc/motd": b"hello", "big": noise(6 << 20)})
    (tmp_path / "layer").write_bytes(content)
    argv = ["pzstd", "-q", "-p2", "-c", str(tmp_path / "layer")]
    packed = (await asyncio.to_thread(subprocess.run, argv, capture_output=True, timeout=60)).stdout
    assert packed.startswith(b"\x50\x2a\x4d\x18")
    table = struct.pack("<II", 0x184D2A5E, 64) + bytes(64)
    config = {"os": "linux", "architecture": m.this_platform().architecture}
    rootfs = {"type": "layers", "diff_ids": [digest_of(content)] * 2}
    saved = [{"Config": "c", "Layers": ["one", "two"]}]
    members = {"manifest.json": saved, "c": {**config, "rootfs": rootfs}}
    archive = {name: json.dumps(document).encode() for name, document in members.items()}
    (tmp_path / "image.tar").write_bytes(tar_of({**archive, "one": packed, "two": packed + table}))
    with (tmp_path / "image.tar").open("rb") as file, cache.lease() as lease:
        image = await load(file, lease=lease, what="image.tar")
        check_layers(image)
        out = io.BytesIO()
        assert flatten(image.layers, out, work=tmp_path).entries == 4


PULLER = """
import asyncio, sys
from pathlib import Path
from banger.image.oci.blobs import BlobCache
from banger.image.oci.endpoint import Access
from banger.image.oci.pull import pull

async def main():
    with BlobCache(Path(sys.argv[1])).lease() as lease:
        await pull(sys.argv[2], lease=lease, access=Access())

asyncio.run(main())
"""


async def test_a_killed_pull_is_continued_by_the_next(cache: BlobCache) -> None:
    registry = await FakeRegistry().start()
    try:
        registry.image(layers=[noise(8 << 20)])
        digest = registry.layers()[0]
        registry.faults[digest] = ["pause"]
        registry.gate = asyncio.Event()
        name = f"{registry.address}/app"
        process = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, "-c", PULLER, str(cache.root), name],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )
        try:
            part = Path(f"{cache.path(digest)}.part")
            for _ in range(3000):
                if part.exists() and part.stat().st_size >= 1 << 20:
                    break
                await asyncio.sleep(0.02)
            assert cache.prune().in_use, "another process is bringing it"
        finally:
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait, 30)
            registry.gate.set()
        had = part.stat().st_size
        await bring(name, cache)
        assert registry.bytes_of_blobs()[-1].range == f"bytes={had}-"
    finally:
        await registry.stop()
