"""A real systemd-resolved for tests: Debian's, unpacked and never installed (it would take over the host's
/etc/resolv.conf).

`unpacked` fetches it once, beside the artifacts. `resolved` runs it on a message bus of its own; only inside
mount and network namespaces where /run is private (`make_private`): see tests/host/resolvedcase.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from banger.config.paths import resolve_paths
from banger.image.archive import Archive, debian_architecture
from banger.image.staging import staged
from tests.artifacts import artifacts_home

PACKAGES = ("systemd-resolved", "libsystemd-shared")
USER = "systemd-resolve"
SERVES = "/run/systemd/resolve/io.systemd.Resolve"
READY_S = 60.0
UPSTREAM = "192.0.2.53"
BUS = """<busconfig>
<type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="*"/>
<allow send_destination="*"/><allow receive_type="*"/></policy>
</busconfig>"""


def unpacked() -> Path:
    """Its files, fetched when they are not there yet. Blocking, not inside an event loop."""
    folder = artifacts_home() / "systemd-resolved"
    if not folder.is_dir():
        asyncio.run(asyncio.wait_for(_unpack(folder), 600))
    return folder


async def _unpack(folder: Path) -> None:
    async with staged(folder, already=folder.is_dir) as staging:
        if staging is None:
            return
        downloads = resolve_paths({"BANGER_HOME": str(artifacts_home())}).downloads_dir
        async with Archive.open(downloads) as archive:
            for name in PACKAGES:
                found = await archive.find(name, suite="bookworm", architecture=debian_architecture())
                deb = await archive.download(found)
                argv = ["dpkg-deb", "-x", str(deb), str(staging)]
                await asyncio.to_thread(subprocess.run, argv, check=True, timeout=60)


def command(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=60)


def make_private() -> None:
    """/run, the user database and resolv.conf of this mount namespace are nobody else's from now on."""
    command("mount", "--make-rprivate", "/")
    command("mount", "-t", "tmpfs", "run", "/run")
    for folder in ("/run/etc", "/run/dbus", "/run/systemd/system", "/run/bin"):
        os.makedirs(folder)
    for name, line in (("passwd", f"{USER}:x:991:991::/:/bin/false"), ("group", f"{USER}:x:991:")):
        kept = [entry for entry in Path("/etc", name).read_text().splitlines() if f"{USER}:" not in entry]
        Path("/run/etc", name).write_text("\n".join([*kept, line, ""]))
        command("mount", "--bind", f"/run/etc/{name}", f"/etc/{name}")
    Path("/run/etc/resolv.conf").write_text(f"nameserver {UPSTREAM}\n")
    command("mount", "--bind", "/run/etc/resolv.conf", os.path.realpath("/etc/resolv.conf"))


def put_on_path(files: Path) -> None:
    """`resolvectl`, with its library, in front of this process's PATH."""
    wrapper = Path("/run/bin/resolvectl")
    library = next(files.glob("usr/lib/*/systemd"))
    wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={library} exec {files}/usr/bin/resolvectl "$@"\n')
    wrapper.chmod(0o755)
    os.environ["PATH"] = f"/run/bin:{os.environ['PATH']}"


@contextmanager
def bus() -> Iterator[None]:
    """The system's message bus of this namespace."""
    Path("/run/bus.conf").write_text(BUS)
    with subprocess.Popen(
        ["dbus-daemon", "--config-file=/run/bus.conf", "--nofork", "--nopidfile"]
    ) as daemon:
        try:
            yield
        finally:
            daemon.kill()


@contextmanager
def resolved(files: Path) -> Iterator[None]:
    """Serving; started afresh each time, as `systemctl restart` does (what it was told of links is kept)."""
    library = next(files.glob("usr/lib/*/systemd"))
    program = next(files.glob("**/systemd/systemd-resolved"))
    with (
        open("/run/resolved.log", "ab") as log,
        subprocess.Popen(
            [program], env={**os.environ, "LD_LIBRARY_PATH": str(library)}, stderr=log
        ) as process,
    ):
        try:
            deadline = time.monotonic() + READY_S
            while not _serves():
                assert process.poll() is None, Path("/run/resolved.log").read_text()
                assert time.monotonic() < deadline, Path("/run/resolved.log").read_text()
                time.sleep(0.05)
            yield
        finally:
            process.terminate()


def _serves() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect(SERVES)
        done = subprocess.run(["resolvectl", "dns"], capture_output=True, timeout=30, check=False)
        return done.returncode == 0
    return False
