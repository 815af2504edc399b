"""A real registry (Debian's docker-registry) on loopback, and images made by umoci and skopeo.

For tests of whole pulls. The registry runs where the test says (in a namespace of its own); its folder is
the caller's and goes with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_INDEX = "application/vnd.oci.image.index.v1+json"
_REF_NAME = "org.opencontainers.image.ref.name"
_CONFIG = """\
version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http:
  addr: {address}
{auth}"""


@contextlib.contextmanager
def registry(
    folder: Path,
    *,
    port: int = 5000,
    run_in: Sequence[str] = (),
    account: str = "",
    tokens: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Its address. run_in: how the command line begins (`ip netns exec X`); account: `user:password`;
    tokens: how docker-registry's `auth: token` is set, where a server gives them (token_server)."""
    address = f"127.0.0.1:{port}"
    folder.mkdir(parents=True, exist_ok=True)
    auth = ""
    if account:
        (folder / "htpasswd").write_text(_run("htpasswd", "-nbB", "-C", "4", *account.split(":")))
        auth = f"auth:\n  htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}\n"
    if tokens:
        auth = f"auth: {json.dumps({'token': dict(tokens)})}\n"  # YAML takes JSON
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(root=folder / "data", address=address, auth=auth))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*run_in, "docker-registry", "serve", str(config)], stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 60
            probe = [*run_in, "bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"]
            while subprocess.run(probe, capture_output=True, timeout=60, check=False).returncode:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "the registry does not listen"
                time.sleep(0.1)
            yield address
        finally:
            server.terminate()
            server.wait(timeout=60)


@contextlib.contextmanager
def token_server(folder: Path, *, run_in: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """A tests.realregistry.TokenServer in a process of its own; what `registry` takes as its tokens."""
    server = subprocess.Popen(
        [*run_in, sys.executable, "-m", "tests.realregistry", str(folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line, "the token server did not start"
        yield json.loads(line)
    finally:
        server.communicate(timeout=60)  # the end of its stdin is its own


def make_layout(
    layout: Path,
    tag: str,
    layers: Sequence[Path | str],
    config: Mapping[str, str | Sequence[str]],
    *,
    architecture: str = "",
) -> None:
    """An OCI layout by umoci. layers: the oldest first, a folder each, or a path that it deletes."""
    image = f"{layout}:{tag}"
    if not layout.exists():
        _run("umoci", "init", "--layout", str(layout))
    _run("umoci", "new", "--image", image)
    for layer in layers:
        what = ["--whiteout", layer] if isinstance(layer, str) else [str(layer), "/"]
        _run("umoci", "insert", "--image", image, *what)
    words: list[str] = []
    for key, value in config.items():
        for one in [value] if isinstance(value, str) else value:
            words += [f"--config.{key}", one]
    words += ["--architecture", architecture] if architecture else []
    _run("umoci", "config", "--image", image, *words)


def manifest_of(layout: Path, tag: str) -> dict[str, Any]:
    """Its entry in the layout's index: mediaType, digest, size, …"""
    entries: list[dict[str, Any]] = json.loads((layout / "index.json").read_bytes())["manifests"]
    (found,) = [entry for entry in entries if entry.get("annotations", {}).get(_REF_NAME) == tag]
    return found


def make_index(layout: Path, tag: str, of: Mapping[str, str]) -> None:
    """A tag that is an index. of: architecture → the tag of its image."""
    entries: list[dict[str, Any]] = []
    for architecture, one in of.items():
        entry = {key: value for key, value in manifest_of(layout, one).items() if key != "annotations"}
        entries.append({**entry, "platform": {"os": "linux", "architecture": architecture}})
    body = json.dumps({"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}).encode()
    digest = hashlib.sha256(body).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(body)
    index = json.loads((layout / "index.json").read_bytes())
    made = {"mediaType": _INDEX, "digest": f"sha256:{digest}", "size": len(body)}
    index["manifests"].append({**made, "annotations": {_REF_NAME: tag}})
    (layout / "index.json").write_text(json.dumps(index))


def unpacked(layout: Path, tag: str, bundle: Path) -> Path:
    """The image's root file system as umoci unpacks it, by root."""
    _run("umoci", "unpack", "--image", f"{layout}:{tag}", str(bundle))
    return bundle / "rootfs"


def push(
    layout: Path,
    tag: str,
    reference: str,
    *,
    run_in: Sequence[str] = (),
    account: str = "",
    zstd: bool = False,
    index: bool = False,
) -> None:
    """Copy an image of a layout to a registry by skopeo; with its layers compressed anew as zstd; or a whole
    index of images."""
    copy = [*run_in, "skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]
    copy += ["--dest-creds", account] if account else []
    copy += ["--all"] if index else []
    source = f"oci:{layout}:{tag}"
    if zstd:
        plain = f"dir:{layout}-plain"
        _run("skopeo", "--insecure-policy", "copy", "-q", "--dest-decompress", source, plain)
        copy.append("--dest-compress-format=zstd")
        source = plain
    _run(*copy, source, f"docker://{reference}")


def busybox_tree(folder: Path) -> Path:
    """A root of the host's static busybox: no init, no passwd, nothing but its commands."""
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    program = shutil.which("busybox")
    assert program, "busybox-static is installed by make setup-test"
    shutil.copy2(program, binaries / "busybox")
    for name in (
        "sh",
        "cat",
        "env",
        "echo",
        "id",
        "ls",
        "pwd",
        "stat",
        "sleep",
        "uname",
        "modprobe",
        "readlink",
    ):
        (binaries / name).symlink_to("busybox")
    return folder


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr.decode('utf-8', 'replace')[-1500:]}"
    return done.stdout.decode()
