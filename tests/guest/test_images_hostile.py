"""Images that somebody made to do harm, on a real registry: each is refused with its reason.

Nothing is left of them. They are written here byte by byte, because no tool makes them; the reason names the
entry, the blob or the document.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from banger.image.oci import manifest as m
from tests.capabilities import require
from tests.fakes.ociregistry import registry
from tests.fakes.proxy import within
from tests.guest.instance import Instance

pytestmark = [require("docker-registry"), pytest.mark.guest]

LONG = "n" * 300


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, target: str = "", **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def tar(*entries: tarfile.TarInfo) -> bytes:
    """Of entries without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for one in entries:
            archive.addfile(one)
    return out.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Hostile:
    """layers: tars, packed as gzip. says: what the refusal has in it; LAYER stands for the last one's digest,
    SHORT for its beginning.

    packed: makes a layer's blob of its tar. config, layer: laid over what would be right.
    """

    name: str
    layers: tuple[bytes, ...]
    says: tuple[str, ...]
    packed: Callable[[bytes], bytes] = lambda data: gzip.compress(data, mtime=0)
    config: Mapping[str, Any] = field(default_factory=dict)
    layer: Mapping[str, Any] = field(default_factory=dict)
    diff_id: str = ""


FINE = tar(entry("etc", tarfile.DIRTYPE, mode=0o755), entry("etc/fine"))
SPARSE = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40)}
HOSTILE = [
    Hostile("another-content", (FINE,), ("layer LAYER", "diff_id"), diff_id=digest(b"else")),
    Hostile("climbs", (FINE, tar(entry("a/../../../../etc/cron.d/owned"))), ("LAYER", "'a/../../", '".."')),
    Hostile(
        "climbs-by-link",
        (tar(entry("hard", tarfile.LNKTYPE, target="../../etc/shadow")),),
        ("'hard'", '".."'),
    ),
    Hostile(
        "links-to-the-host",
        (tar(entry("h", tarfile.LNKTYPE, target="/etc/shadow")),),
        ("'h'", "'/etc/shadow'"),
    ),
    Hostile(
        "through-a-file",
        (FINE, tar(entry("to", tarfile.SYMTYPE, target="/etc/fine"), entry("to/owned"))),
        ("LAYER", "entry 'to/owned'", "no folder"),
    ),
    Hostile(
        "symlinks-in-a-ring",
        (
            tar(
                entry("a", tarfile.SYMTYPE, target="b"),
                entry("b", tarfile.SYMTYPE, target="/a"),
                entry("a/x"),
            ),
        ),
        ("entry 'a/x'", "loop of symlinks"),
    ),
    Hostile(
        "whites-out-what-is-above",
        (FINE, tar(entry("etc/.wh..."))),
        ("LAYER", "'etc/.wh...'", "whiteout of nothing"),
    ),
    Hostile("whites-out-itself", (FINE, tar(entry(".wh.."))), ("'.wh..'", "whiteout of nothing")),
    Hostile("whites-out-outside", (FINE, tar(entry("../.wh.etc"))), ("'../.wh.etc'", '".."')),
    Hostile(
        "grows-beyond-all-bounds",
        (tar(entry("huge", pax_headers=SPARSE)),),
        ("LAYER", "entry 'huge'", "more than 65536 MiB"),
    ),
    Hostile("a-name-too-long", (tar(entry(f"etc/{LONG}")),), ("LAYER", "'etc/nnn", "more than 255 bytes")),
    Hostile("speaks-to-terminals", (tar(entry("\x1b[2J\n/../x")),), (r"'\x1b[2J\n/../x'",)),
    Hostile(
        "a-device-of-no-kernel",
        (tar(entry("d", tarfile.CHRTYPE, devmajor=70_000)),),
        ("entry 'd'", "device 70000:0"),
    ),
    Hostile("ends-early", (FINE,), ("LAYER", "gzip"), packed=lambda data: gzip.compress(data)[:-20]),
    Hostile("no-tar", (b"#!/bin/sh\n" * 100,), ("LAYER", "wrong checksum")),
    Hostile("of-no-known-type", (FINE,), ("application/x.evil",), layer={"mediaType": "application/x.evil"}),
    Hostile("larger-than-it-says", (FINE,), ("SHORT", "its manifest says 20"), layer={"size": 20}),
    Hostile("runs-a-number", (FINE,), ("config of", "Entrypoint"), config={"config": {"Entrypoint": 7}}),
    Hostile(
        "a-word-with-a-zero", (FINE,), ("config of", "zero byte"), config={"config": {"Env": ["A=b\0c"]}}
    ),
    Hostile("more-words-than-fit", (FINE,), ("config of",), config={"config": {"Cmd": ["x"] * 5000}}),
    Hostile(
        "more-layers-than-ids",
        (FINE,),
        ("1 layers", "speaks of 2"),
        config={"rootfs": {"type": "layers", "diff_ids": [digest(b""), digest(b"1")]}},
    ),
    Hostile("for-another-machine", (FINE,), ("linux/s390x",), config={"architecture": "s390x"}),
]


@pytest.fixture(scope="module")
def address(banger: Instance) -> Iterator[str]:
    with registry(banger.home / "registry", run_in=banger.argv()) as found:
        yield found


def upload(address: str, image: Hostile) -> str:
    """By the registry's own interface: tools refuse to push some of these. The last layer's digest."""
    blobs = [image.packed(layer) for layer in image.layers]
    config: dict[str, Any] = {
        "os": "linux",
        "architecture": m.this_platform().architecture,
        "rootfs": {"type": "layers", "diff_ids": [image.diff_id or digest(layer) for layer in image.layers]},
    }
    config_blob = json.dumps({**config, **image.config}).encode()
    layers = [
        {"mediaType": f"{m.OCI_LAYER}+gzip", "digest": digest(blob), "size": len(blob), **image.layer}
        for blob in blobs
    ]
    described = {"mediaType": m.OCI_CONFIG, "digest": digest(config_blob), "size": len(config_blob)}
    manifest = {"schemaVersion": 2, "mediaType": m.OCI_MANIFEST, "config": described, "layers": layers}
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        for blob in [config_blob, *blobs]:
            where = urlsplit(_ask(connection, "POST", f"/v2/{image.name}/blobs/uploads/", b""))
            path = f"{where.path}?{where.query}&digest={digest(blob)}"
            _ask(connection, "PUT", path, blob)
        _ask(
            connection,
            "PUT",
            f"/v2/{image.name}/manifests/latest",
            json.dumps(manifest).encode(),
            m.OCI_MANIFEST,
        )
    finally:
        connection.close()
    return digest(blobs[-1])


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes,
    kind: str = "application/octet-stream",
) -> str:
    """The Location of the answer."""
    connection.request(method, path, body, {"Content-Type": kind})
    response = connection.getresponse()
    said = response.read()
    assert response.status in (201, 202), f"{method} {path}: {response.status} {said!r}"
    return response.headers.get("Location", "")


@pytest.mark.parametrize("image", HOSTILE, ids=[image.name for image in HOSTILE])
def test_it_is_refused(banger: Instance, address: str, image: Hostile) -> None:
    layer = within(banger.netns, lambda: upload(address, image))
    refused = banger.banger("image", "pull", f"{address}/{image.name}")
    assert refused.status == 1, refused.stderr
    last = refused.stderr[refused.stderr.index("banger: ") :]
    for words in image.says:
        assert words.replace("LAYER", layer).replace("SHORT", layer[:19]) in last
    assert "\x1b" not in refused.stderr
    assert image.name not in banger.ok("image", "list").text
    images = Path(banger.paths.images_dir)
    assert [path.name for path in images.glob(".*") if not path.name.startswith(".lock-")] == []
    assert list(Path(banger.paths.cache_dir, "blobs").rglob("*.part")) == []


def test_a_symlink_out_of_the_image_leads_into_it(banger: Instance, address: str, tmp_path: Path) -> None:
    """As everywhere, its target is the image's own: what lies behind it never meets the host."""
    (tmp_path / "kept").write_text("the host's")
    links = [
        entry("out", tarfile.SYMTYPE, target=f"/../../..{tmp_path}"),
        entry("out/kept"),
        entry("out/owned"),
    ]
    image = Hostile("escapes", (FINE, tar(*links), tar(entry("out/.wh.kept"))), ())
    within(banger.netns, lambda: upload(address, image))
    assert banger.ok("image", "pull", f"{address}/escapes").text == "escapes\n"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "the host's"
    shown = json.loads(banger.ok("image", "show", "escapes", "--json").text)
    listed = banger.run_in_netns("debugfs", "-R", f"ls -p {tmp_path}", shown["rootfs_path"]).text
    assert "/owned/" in listed
    assert "/kept/" not in listed
    banger.ok("image", "delete", "escapes")
