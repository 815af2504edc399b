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

PORT = 5000
ADDRESS = f"127.0.0.1:{PORT}"
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
def registry(folder: Path, *, run_in: Sequence[str] = (), htpasswd: str = "") -> Iterator[str]:
    """Its address. run_in: what the command line begins with (`ip netns exec X`); htpasswd: a user's line."""
    folder.mkdir(parents=True, exist_ok=True)
    auth = ""
    if htpasswd:
        (folder / "htpasswd").write_text(htpasswd + "\n")
        auth = f"auth:\n  htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}\n"
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(root=folder / "data", address=ADDRESS, auth=auth))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*run_in, "docker-registry", "serve", str(config)], stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 30
            probe = [*run_in, "bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{PORT}"]
            while subprocess.run(probe, capture_output=True, timeout=10, check=False).returncode:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "the registry does not listen"
                time.sleep(0.1)
            yield ADDRESS
        finally:
            server.terminate()
            server.wait(timeout=10)


def make_layout(
    layout: Path, tag: str, layers: Sequence[Path], config: Mapping[str, str | Sequence[str]]
) -> None:
    """An OCI layout by umoci: an image of these folders, each a layer on the one before."""
    image = f"{layout}:{tag}"
    if not layout.exists():
        _run("umoci", "init", "--layout", str(layout))
    _run("umoci", "new", "--image", image)
    for folder in layers:
        _run("umoci", "insert", "--image", image, str(folder), "/")
    words: list[str] = []
    for key, value in config.items():
        for one in [value] if isinstance(value, str) else value:
            words += [f"--config.{key}", one]
    _run("umoci", "config", "--image", image, *words)


def push(layout: Path, tag: str, name: str, *, run_in: Sequence[str] = (), credentials: str = "") -> str:
    """Copy an image of a layout to the registry by skopeo; its manifest's digest."""
    login = ["--dest-creds", credentials] if credentials else []
    target = f"docker://{ADDRESS}/{name}"
    _run(
        *run_in,
        "skopeo",
        "--insecure-policy",
        "copy",
        "-q",
        "--dest-tls-verify=false",
        *login,
        f"oci:{layout}:{tag}",
        target,
    )
    return ""


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
