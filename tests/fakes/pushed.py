"""Images put together here and pushed by the registry's own interface: for what no tool makes or pushes."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import random
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from banger.image.oci import manifest as m


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def upload(
    address: str,
    name: str,
    layers: Sequence[tuple[bytes, str]],
    *,
    config: Mapping[str, Any] = {},
    described: Mapping[str, Any] = {},
) -> str:
    """Push as `name:latest`. layers: gzip blobs and diff_ids; config, described: laid over what would be
    right of the config, and of each layer in the manifest. Returns the manifest's digest."""
    whole: dict[str, Any] = {
        "os": "linux",
        "architecture": m.this_platform().architecture,
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _blob, diff_id in layers]},
    }
    config_blob = json.dumps({**whole, **config}).encode()
    entries = [
        {"mediaType": f"{m.OCI_LAYER}+gzip", "digest": digest(blob), "size": len(blob), **described}
        for blob, _diff_id in layers
    ]
    of_config = {"mediaType": m.OCI_CONFIG, "digest": digest(config_blob), "size": len(config_blob)}
    document = {"schemaVersion": 2, "mediaType": m.OCI_MANIFEST, "config": of_config, "layers": entries}
    manifest = json.dumps(document).encode()
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        for blob in [config_blob, *(blob for blob, _diff_id in layers)]:
            where = urlsplit(_ask(connection, "POST", f"/v2/{name}/blobs/uploads/", b""))
            _ask(connection, "PUT", f"{where.path}?{where.query}&digest={digest(blob)}", blob)
        _ask(connection, "PUT", f"/v2/{name}/manifests/latest", manifest, m.OCI_MANIFEST)
    finally:
        connection.close()
    return digest(manifest)


def layer_of(files: int, size: int, *, seed: int = 0) -> tuple[bytes, str]:
    """A layer of so many files of `size` bytes altogether, which do not compress: (gzip blob, diff_id)."""
    out = io.BytesIO()
    each = random.Random(seed).randbytes(size // files)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(files):
            if number % 100 == 0:
                folder = tarfile.TarInfo(f"d{number // 100}")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(folder)
            info = tarfile.TarInfo(f"d{number // 100}/file-{number:08}")
            info.size = len(each)
            archive.addfile(info, io.BytesIO(each))
    tar = out.getvalue()
    packer = zlib.compressobj(0, wbits=31)
    return packer.compress(tar) + packer.flush(), digest(tar)


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
