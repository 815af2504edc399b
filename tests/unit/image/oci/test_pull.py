"""Pulling from a registry that breaks, lies and redirects."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from banger.config.settings import Registry
from banger.errors import BangerError, ErrorCode
from banger.image.oci import manifest as m
from banger.image.oci import registry as registry_module
from banger.image.oci.auth import Credential
from banger.image.oci.blobs import BlobCache
from banger.image.oci.endpoint import Access
from banger.image.oci.manifest import PulledImage
from banger.image.oci.pull import PARALLEL, pull
from banger.image.oci.transport import Transport
from banger.model.progress import ProgressEvent
from tests.fakes.looptime import pass_time
from tests.fakes.registry import FakeRegistry, noise

pytestmark = pytest.mark.anyio


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    made = await FakeRegistry().start()
    yield made
    await made.stop()


@pytest.fixture
async def other() -> AsyncIterator[FakeRegistry]:
    made = await FakeRegistry().start()
    yield made
    await made.stop()


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "blobs")


class Clock:
    """Sleeps for nobody, and remembers for how long it should have."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


async def bring(
    registry: FakeRegistry,
    cache: BlobCache,
    name: str = "app",
    *,
    clock: Clock | None = None,
    events: list[ProgressEvent] | None = None,
    **access: Any,
) -> PulledImage:
    with cache.lease() as lease:
        image = await pull(
            f"{registry.address}/{name}",
            lease=lease,
            access=Access(**access),
            sleep=(clock or Clock()).sleep,
            progress=(events if events is not None else []).append,
        )
        for layer in image.layers:
            data = layer.path.read_bytes()
            assert f"sha256:{hashlib.sha256(data).hexdigest()}" == layer.digest
            assert len(data) == layer.size
        return image


async def refused(registry: FakeRegistry, cache: BlobCache, name: str = "app", **more: Any) -> BangerError:
    with pytest.raises(BangerError) as caught:
        await bring(registry, cache, name, **more)
    assert caught.value.brief.isprintable()
    assert "\x1b" not in caught.value.brief
    return caught.value


def files(cache: BlobCache) -> list[str]:
    return sorted(path.name for path in (cache.root / "sha256").glob("*"))


async def test_a_pull_gives_layers_and_config(registry: FakeRegistry, cache: BlobCache) -> None:
    digest = registry.image(layers=[b"a" * 1000, b"b"], config={"Entrypoint": ["/go"], "Env": ["A=b"]})
    events: list[ProgressEvent] = []
    image = await bring(registry, cache, events=events)
    assert image.reference == f"{registry.address}/app:latest"
    assert image.digest == image.pinned == digest
    assert image.config.entrypoint == ("/go",)
    assert [layer.diff_id for layer in image.layers] == list(image.config.diff_ids)
    assert events[-1].current == events[-1].total == sum(layer.size for layer in image.layers)


async def test_a_second_pull_brings_no_bytes(registry: FakeRegistry, cache: BlobCache) -> None:
    digest = registry.image()
    await bring(registry, cache)
    registry.requests.clear()
    await bring(registry, cache)
    assert [asked.method for asked in registry.requests] == ["HEAD"]
    registry.requests.clear()
    await bring(registry, cache, f"app@{digest}")
    assert registry.requests == []


async def test_a_moved_tag_is_noticed(registry: FakeRegistry, cache: BlobCache) -> None:
    first = await bring_new(registry, cache, b"old")
    second = await bring_new(registry, cache, b"new")
    assert first.digest != second.digest


async def bring_new(registry: FakeRegistry, cache: BlobCache, content: bytes) -> PulledImage:
    registry.image(layers=[content])
    return await bring(registry, cache)


async def test_a_registry_that_tells_no_digest(registry: FakeRegistry, cache: BlobCache) -> None:
    digest = registry.image()
    registry.faults["app:latest"] = ["no-digest*"]
    assert (await bring(registry, cache)).digest == digest


async def test_this_machines_image_of_an_index_in_an_index(registry: FakeRegistry, cache: BlobCache) -> None:
    here = m.this_platform()
    inner = registry.image("app", "inner")
    foreign = registry.image("app", "foreign", layers=[b"x"], architecture="s390x")

    def entry(digest: str, media_type: str, architecture: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": 1}
        if architecture:
            found["platform"] = {"os": "linux", "architecture": architecture}
        return found

    nested = registry.put(
        "app",
        "nested",
        {
            "schemaVersion": 2,
            "mediaType": m.OCI_INDEX,
            "manifests": [entry(inner, m.OCI_MANIFEST, here.architecture)],
        },
    )
    top = registry.put(
        "app",
        "latest",
        {
            "schemaVersion": 2,
            "mediaType": m.DOCKER_INDEX,
            "manifests": [entry(foreign, m.OCI_MANIFEST, "s390x"), entry(nested, m.OCI_INDEX)],
        },
    )
    image = await bring(registry, cache)
    assert (image.pinned, image.digest) == (top, inner)
    error = await refused(registry, cache, "app:foreign")
    assert error.code is ErrorCode.NOT_FOUND
    assert f"is for linux/s390x, not for {here}" in error.brief


async def test_a_wrong_platform_lists_those_there_are(registry: FakeRegistry, cache: BlobCache) -> None:
    platforms = [{"os": "linux", "architecture": "s390x"}, {"os": "windows", "architecture": "amd64"}]
    digest = registry.image()
    entries = [
        {"mediaType": m.OCI_MANIFEST, "digest": digest, "size": 1, "platform": one} for one in platforms
    ]
    registry.put("app", "two", {"schemaVersion": 2, "mediaType": m.OCI_INDEX, "manifests": entries})
    error = await refused(registry, cache, "app:two")
    assert error.code is ErrorCode.NOT_FOUND
    assert error.brief.endswith("it has: linux/s390x, windows/amd64")


async def test_indexes_that_never_end(registry: FakeRegistry, cache: BlobCache) -> None:
    below = registry.image("app", "deep")
    kind = m.OCI_MANIFEST
    for level in range(10):
        entries = [{"mediaType": kind, "digest": below, "size": 1, "annotations": {"n": str(level)}}]
        below = registry.put(
            "app", "latest", {"schemaVersion": 2, "mediaType": m.OCI_INDEX, "manifests": entries}
        )
        kind = m.OCI_INDEX
    error = await refused(registry, cache)
    assert error.code is ErrorCode.IMAGE_INVALID
    assert "leads through more than" in error.brief


async def test_not_there(registry: FakeRegistry, cache: BlobCache) -> None:
    error = await refused(registry, cache, "nothing:v9")
    assert error.code is ErrorCode.NOT_FOUND
    assert "nothing:v9" in error.brief
    assert "manifest unknown" in error.brief


@pytest.mark.parametrize(
    ("fault", "why"),
    [("wrong*", "something else"), ("larger*", "larger than")],
)
async def test_lies_about_a_manifest(registry: FakeRegistry, cache: BlobCache, fault: str, why: str) -> None:
    digest = registry.image()
    registry.faults[f"app@{digest}"] = [fault]
    error = await refused(registry, cache, f"app@{digest}")
    assert error.code is ErrorCode.IMAGE_INVALID
    assert why in error.brief
    assert files(cache) == []


async def test_a_page_instead_of_a_manifest(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.image()
    registry.faults["app:latest"] = ["html*"]
    error = await refused(registry, cache)
    assert error.code is ErrorCode.IMAGE_INVALID
    assert "unknown type: text/html" in error.brief
    assert files(cache) == []


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("wrong*", "is something else"),
        ("longer*", "its manifest says"),
        ("endless*", "larger than"),
    ],
)
async def test_lies_about_a_layer(registry: FakeRegistry, cache: BlobCache, fault: str, why: str) -> None:
    registry.image(layers=[noise(300_000)])
    digest = registry.layers()[0]
    registry.faults[digest] = [fault]
    error = await refused(registry, cache)
    assert error.code is ErrorCode.IMAGE_INVALID
    assert why in error.brief
    assert not cache.path(digest).exists()
    registry.faults.clear()
    await bring(registry, cache)


@pytest.mark.parametrize("fault", ["break", "503", "500", "502", "504", "408", "429"])
async def test_what_passes_is_tried_again(registry: FakeRegistry, cache: BlobCache, fault: str) -> None:
    registry.image(layers=[noise(3 << 20), b"small"])
    registry.faults[registry.layers()[0]] = [fault, fault]
    registry.faults["app:latest"] = ["503"]
    clock, events = Clock(), list[ProgressEvent]()
    await bring(registry, cache, clock=clock, events=events)
    assert len(clock.slept) == 3
    assert sum("trying again" in event.message for event in events) == 3
    if fault == "break":
        ranges = [asked.range for asked in registry.bytes_of_blobs() if asked.range]
        assert len(ranges) == 2, "a broken download goes on where it broke"


async def test_what_does_not_pass_ends(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.image()
    registry.faults[registry.layers()[0]] = ["503*"]
    clock = Clock()
    error = await refused(registry, cache, clock=clock)
    assert error.code is ErrorCode.DOWNLOAD_FAILED
    assert "answers 503" in error.brief
    assert clock.slept == [0.5, 1.0, 2.0, 4.0]


async def test_how_long_the_registry_wants(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.image()
    registry.faults[registry.layers()[0]] = ["429 7", "429 Thu, 01 Jan 1970 00:00:00 GMT"]
    clock = Clock()
    await bring(registry, cache, clock=clock)
    assert clock.slept == [7.0, 0.0]
    registry.image(layers=[b"another"])
    registry.faults[registry.layers()[0]] = ["429 86400"]
    error = await refused(registry, cache, clock=clock)
    assert error.code is ErrorCode.DOWNLOAD_FAILED
    assert "asks to wait 86400 s" in error.brief


@pytest.mark.parametrize("fault", ["no-range", "wrong-range", "416"])
async def test_a_part_that_cannot_be_continued_begins_anew(
    registry: FakeRegistry, cache: BlobCache, fault: str
) -> None:
    registry.image(layers=[noise(3 << 20)])
    registry.faults[registry.layers()[0]] = ["break", fault]
    await bring(registry, cache)


async def test_an_interrupted_pull_is_continued(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.image(layers=[noise(4 << 20)])
    digest = registry.layers()[0]
    registry.faults[digest] = ["break", "404"]
    await refused(registry, cache)
    had = Path(f"{cache.path(digest)}.part").stat().st_size
    assert had > 1 << 20
    registry.requests.clear()
    await bring(registry, cache)
    (asked,) = registry.bytes_of_blobs()
    assert asked.range == f"bytes={had}-"


async def test_a_spoilt_part_is_not_the_registrys_fault(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.image(layers=[noise(3 << 20)])
    digest = registry.layers()[0]
    part = Path(f"{cache.path(digest)}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1_000_000)
    await bring(registry, cache)
    assert [asked.range for asked in registry.bytes_of_blobs() if digest in asked.path] == [
        "bytes=1000000-",
        "",
    ]


async def test_layers_come_several_at_once_and_not_too_many(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.image(layers=[noise(100_000, seed) for seed in range(8)])
    registry.faults = {digest: ["wait"] for digest in registry.layers()}
    registry.gate = asyncio.Event()
    task = asyncio.create_task(bring(registry, cache))
    async with asyncio.timeout(50):
        while registry.at_once < PARALLEL:
            registry.busy.clear()
            await registry.busy.wait()
        await asyncio.sleep(0.05)
        registry.gate.set()
        await task
    assert registry.most_at_once == PARALLEL


async def test_several_pulls_bring_a_layer_once(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.image(layers=[noise(2 << 20), b"x"])
    again = BlobCache(cache.root)  # as another process has it
    await asyncio.gather(bring(registry, cache), bring(registry, again), bring(registry, cache))
    asked = [one.path for one in registry.bytes_of_blobs()]
    assert len(asked) == len(set(asked)) == 3


async def test_the_first_to_be_asked_for_are_layers(
    registry: FakeRegistry, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request finds out whether the registry speaks https or http; the others wait for that."""
    digest = registry.image(layers=[noise(10_000, seed) for seed in range(5)])
    image = await bring(registry, cache)
    cache.prune({digest, image.config_digest})
    asked: list[str] = []
    send = Transport._send

    async def noted(transport: Transport, method: str, url: Any, **more: Any) -> Any:
        asked.append(str(url).partition(":")[0])
        return await send(transport, method, url, **more)

    monkeypatch.setattr(Transport, "_send", noted)
    await bring(registry, cache, f"app@{digest}")
    assert asked == ["https"] + ["http"] * 5


async def test_a_registry_that_falls_silent(
    registry: FakeRegistry, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "SMALL_TIMEOUT_S", 50.0)
    monkeypatch.setattr(registry_module, "SLOWEST", 1 << 30)
    registry.image(layers=[noise(3 << 20)])
    digest = registry.layers()[0]
    registry.faults[digest] = ["pause", "pause"]
    registry.gate = asyncio.Event()
    events: list[ProgressEvent] = []
    bringing = asyncio.create_task(bring(registry, cache, events=events))
    for _ in range(2):
        await registry.paused.wait()
        registry.paused.clear()
        async with asyncio.timeout(50):
            while not Path(f"{cache.path(digest)}.part").stat().st_size:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        pass_time(50)
    await bringing
    registry.gate.set()
    assert sum("is too slow" in event.message for event in events) == 2
    ranges = [int(asked.range[6:-1] or 0) for asked in registry.bytes_of_blobs() if asked.range]
    assert ranges == sorted(ranges)
    assert ranges[0] > 1_000_000, "what had come is kept"


async def test_a_registry_that_drips(
    registry: FakeRegistry, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 KiB/s are too few where 64 are asked for; how large a layer is said to be buys no time."""
    monkeypatch.setattr(registry_module, "SMALL_TIMEOUT_S", 0.5)
    monkeypatch.setattr(registry_module, "SLOWEST", 1 << 16)
    registry.image(layers=[noise(3 << 20)])
    registry.faults[registry.layers()[0]] = ["drip", "drip"]
    events: list[ProgressEvent] = []
    await bring(registry, cache, events=events)
    assert sum("is too slow" in event.message for event in events) >= 2
    ranges = [int(asked.range[6:-1] or 0) for asked in registry.bytes_of_blobs() if asked.range]
    assert ranges[0] < 0.5 * (1 << 16)


async def test_a_failure_ends_the_other_downloads(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.image(layers=[noise(1 << 20, seed) for seed in range(6)])
    registry.faults[registry.layers()[1]] = ["404*"]
    error = await refused(registry, cache)
    assert error.code is ErrorCode.DOWNLOAD_FAILED
    assert "has the manifest, but not" in error.brief
    assert registry.at_once == 0


async def test_a_cancelled_pull_leaves_parts_that_nobody_holds(
    registry: FakeRegistry, cache: BlobCache
) -> None:
    registry.image(layers=[noise(8 << 20)])
    task = asyncio.create_task(bring(registry, cache))
    await registry.busy.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cache.prune().in_use == ()
    assert files(cache) == []


async def test_one_layer_twice(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.image(layers=[b"same", b"same"])
    document = json.loads(registry.manifests["app:latest"][0])
    document["layers"] = [document["layers"][0]] * 2
    config = json.loads(registry.blobs[document["config"]["digest"]])
    config["rootfs"]["diff_ids"] = [config["rootfs"]["diff_ids"][0]] * 2
    document["config"] = registry.blob(json.dumps(config).encode(), m.OCI_CONFIG)
    registry.put("app", "latest", document)
    image = await bring(registry, cache)
    assert image.layers[0] == image.layers[1]
    document["layers"][1] = {**document["layers"][1], "size": 5}
    registry.put("app", "latest", document)
    assert "two sizes" in (await refused(registry, cache)).brief


async def test_a_config_that_lies(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.image()
    document = json.loads(registry.manifests["app:latest"][0])
    registry.put("app", "latest", {**document, "layers": document["layers"][:1]})
    error = await refused(registry, cache)
    assert "has 1 layers, and its config speaks of 2" in error.brief


async def test_more_than_the_disk_has(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.image()
    document = json.loads(registry.manifests["app:latest"][0])
    document["layers"][0] = {**document["layers"][0], "size": 120 << 30, "digest": f"sha256:{'9' * 64}"}
    registry.put("app", "latest", document)
    error = await refused(registry, cache)
    assert error.code in (ErrorCode.NO_SPACE, ErrorCode.IMAGE_INVALID, ErrorCode.DOWNLOAD_FAILED)
    assert not cache.path(document["layers"][0]["digest"]).exists()


# --- redirects


async def test_a_storage_elsewhere_sees_no_authorization(
    registry: FakeRegistry, other: FakeRegistry, cache: BlobCache
) -> None:
    registry.auth, registry.users = "basic", {"ann": "secret"}
    registry.image()
    for digest, data in registry.blobs.items():
        other.blobs[digest] = data
        registry.faults[digest] = [f"-> http://{other.address}/elsewhere/{digest}?sig=%2Fa%7Eb*"]
    await bring(registry, cache, credentials=ann(registry))
    assert len(other.requests) == 3
    assert {asked.authorization for asked in other.requests} == {""}
    assert all(asked.path.endswith("?sig=%2Fa%7Eb") for asked in other.requests), "as the registry wrote it"
    assert registry.requests[-1].authorization.startswith("Basic ")


def ann(registry: FakeRegistry, password: str = "secret") -> dict[str, Credential]:
    return {registry.address: Credential(username="ann", password=password)}


async def test_a_storage_that_asks_for_a_password_gets_none(
    registry: FakeRegistry, other: FakeRegistry, cache: BlobCache
) -> None:
    registry.auth, registry.users = "basic", {"ann": "secret"}
    registry.image()
    other.auth = "bearer"
    digest = registry.layers()[0]
    registry.faults[digest] = [f"-> http://{other.address}/v2/app/blobs/{digest}*"]
    error = await refused(registry, cache, credentials=ann(registry))
    assert error.code is ErrorCode.DOWNLOAD_FAILED
    assert "an authorization of its own" in error.brief
    assert other.token_requests == []
    assert {asked.authorization for asked in other.requests} == {""}


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("circle*", "in circles"),
        ("chain*", "in circles"),
        ("-> http://registry.example.org/x*", "without encryption"),
        ("-> file:///etc/passwd*", "no http URL"),
        ("-> https://u:p@example.org/*", "strange URL"),
        ("-> //[::1*", "no http URL"),
        ("-> *", "nowhere"),
    ],
)
async def test_redirects_that_are_not_followed(
    registry: FakeRegistry, cache: BlobCache, fault: str, why: str
) -> None:
    registry.image()
    registry.faults[registry.layers()[0]] = [fault]
    error = await refused(registry, cache)
    assert error.code is ErrorCode.DOWNLOAD_FAILED
    assert why in error.brief


# --- authorization


async def test_basic(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.auth, registry.users = "basic", {"ann": "secret"}
    registry.image()
    error = await refused(registry, cache)
    assert error.code is ErrorCode.PERMISSION_DENIED
    assert error.hint is not None
    assert "login" in error.hint
    error = await refused(registry, cache, credentials=ann(registry, "wrong"))
    assert error.code is ErrorCode.PERMISSION_DENIED
    assert "to this account" in error.brief
    assert "secret" not in f"{error.brief}{error.details}{error.hint}"
    await bring(registry, cache, credentials=ann(registry))


async def test_anonymous_bearer(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.auth = "bearer"
    registry.image()
    await bring(registry, cache)
    assert registry.token_requests == [
        {"scope": "repository:app:pull", "service": "fake", "authorization": ""}
    ], "one token for all, and for no more than is needed, whatever the registry asks for"


async def test_bearer_with_an_account(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.auth, registry.users = "bearer", {"ann": "secret"}
    registry.image()
    assert (await refused(registry, cache)).code is ErrorCode.PERMISSION_DENIED
    error = await refused(registry, cache, credentials=ann(registry, "wrong"))
    assert error.code is ErrorCode.PERMISSION_DENIED
    await bring(registry, cache, credentials=ann(registry))
    given = {asked.authorization.partition(" ")[0] for asked in registry.requests}
    assert given == {"", "Bearer"}, "the password goes to the token server only"


async def test_a_token_that_runs_out(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.auth = "bearer"
    registry.image(layers=[noise(3 << 20)])
    await bring(registry, cache)
    registry.image(layers=[noise(3 << 20, 1), noise(3 << 20, 2)])
    digest = registry.layers()[0]
    registry.faults[digest] = ["break"]
    registry.busy.clear()
    done = asyncio.create_task(bring(registry, cache))
    await registry.busy.wait()
    registry.tokens[:] = ["none of those given out"]
    await done
    assert len(registry.token_requests) == 3


async def test_identity_tokens_and_registry_tokens(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.auth, registry.users, registry.refresh_tokens = "bearer", {"ann": "secret"}, {"refresh"}
    registry.image()
    await bring(registry, cache, credentials={registry.address: Credential(identity_token="refresh")})
    assert registry.token_requests[0]["grant_type"] == "refresh_token"
    registry.image("two", layers=[b"two"])
    registry.tokens.append("given")
    before = len(registry.token_requests)
    await bring(registry, cache, "two", credentials={registry.address: Credential(registry_token="given")})
    assert len(registry.token_requests) == before


@pytest.mark.parametrize(
    ("realm", "why"),
    [("http://token.example.org/", "without encryption"), ("gopher://x/", "no http URL")],
)
async def test_token_servers_that_get_no_password(
    registry: FakeRegistry, cache: BlobCache, realm: str, why: str
) -> None:
    registry.auth, registry.users, registry.realm = "bearer", {"ann": "secret"}, realm
    registry.image()
    error = await refused(registry, cache, credentials=ann(registry))
    assert error.code is ErrorCode.DOWNLOAD_FAILED
    assert why in error.brief


# --- where registries are


async def test_a_mirror_is_asked_first_and_the_registry_for_the_rest(
    registry: FakeRegistry, other: FakeRegistry, cache: BlobCache
) -> None:
    registry.image()
    other.manifests, other.blobs = registry.manifests, dict(registry.blobs)
    missing = registry.layers()[1]
    del other.blobs[missing]
    entries = (Registry(host=registry.address, mirror=f"http://{other.address}/"),)
    await bring(registry, cache, registries=entries)
    assert [asked.path for asked in registry.requests] == [f"/v2/app/blobs/{missing}"]
    await other.stop()
    registry.image(layers=[b"new"])
    await bring(registry, cache, registries=entries)


async def test_no_http_but_where_it_is_allowed(registry: FakeRegistry, cache: BlobCache) -> None:
    registry.image()
    with pytest.raises(BangerError) as caught, cache.lease() as lease:
        await pull("registry.invalid:1/app", lease=lease, access=Access(), sleep=Clock().sleep)
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
    assert "cannot reach the registry registry.invalid:1" in caught.value.brief


async def test_nobody_there(registry: FakeRegistry, cache: BlobCache) -> None:
    clock = Clock()
    with socket.socket() as held:  # it listens not, and nobody else can
        held.bind(("127.0.0.1", 0))
        gone = replace(registry, address=f"127.0.0.1:{held.getsockname()[1]}")
        error = await refused(gone, cache, clock=clock)
    assert error.code is ErrorCode.DOWNLOAD_FAILED
    assert clock.slept == [], "nothing to be patient with"
