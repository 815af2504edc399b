"""A real registry (Debian's docker-registry) on loopback, and images made by umoci and skopeo.

For tests of whole pulls. The registry runs where the test says (in a namespace of its own); its folder is
the caller's and goes with it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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
    folder: Path, *, port: int = 5000, run_in: Sequence[str] = (), account: str = ""
) -> Iterator[str]:
    """Its address. run_in: how the command line begins (`ip netns exec X`); account: `user:password`."""
    address = f"127.0.0.1:{port}"
    folder.mkdir(parents=True, exist_ok=True)
    auth = ""
    if account:
        (folder / "htpasswd").write_text(_run("htpasswd", "-nbB", "-C", "4", *account.split(":")))
        auth = f"auth:\n  htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}\n"
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(root=folder / "data", address=address, auth=auth))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*run_in, "docker-registry", "serve", str(config)], stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 30
            probe = [*run_in, "bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"]
            while subprocess.run(probe, capture_output=True, timeout=10, check=False).returncode:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "the registry does not listen"
                time.sleep(0.1)
            yield address
        finally:
            server.terminate()
            server.wait(timeout=10)


def make_layout(
    layout: Path, tag: str, layers: Sequence[Path | str], config: Mapping[str, str | Sequence[str]]
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
    _run("umoci", "config", "--image", image, *words)


def push(
    layout: Path,
    tag: str,
    reference: str,
    *,
    run_in: Sequence[str] = (),
    account: str = "",
    zstd: bool = False,
) -> None:
    """Copy an image of a layout to a registry by skopeo; with its layers compressed anew as zstd."""
    copy = [*run_in, "skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]
    copy += ["--dest-creds", account] if account else []
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
