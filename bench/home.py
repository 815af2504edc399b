"""A banger of the bench's own: a home below a temporary folder, kernel and image as hard links, one daemon.

Everything happens in the network namespace that bench/__main__.py made for the whole run, so that bridge and
taps are nobody else's and go with it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from banger.client.client import Client
from banger.config.paths import Paths
from tests.artifacts import artifacts

BANGER = str(Path(sys.executable).with_name("banger"))
SMALL = '[vm_defaults]\nvcpu = 1\nmemory_mib = 256\ndisk_size = "1G"\nsystem_overlay_size = "2G"\n'
TOOK = re.compile(r"^step (\w+) took ([0-9.]+) ms$")


class Home:
    def __init__(self, folder: Path, *, config: str = "") -> None:
        self.folder = folder
        self.paths: Paths = artifacts().seed_home(folder)
        Path(self.paths.config_file).write_text(config + SMALL)

    @property
    def env(self) -> dict[str, str]:
        """A person's: in particular without PYTHONDONTWRITEBYTECODE, which makes every start slow."""
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
        return {**kept, "BANGER_HOME": str(self.folder)}

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [BANGER, *words],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"banger {' '.join(words)}: {done.returncode}: {done.stderr}")
        return done.stdout

    def client(self) -> Client:
        return Client(self.paths)

    def daemon_pid(self) -> int:
        with self.client() as client:
            return int(client.info()["pid"])

    def vm_dir(self, name: str) -> Path:
        with self.client() as client:
            return Path(self.paths.vm_dir(client.show_vm(name)["id"]))

    def said_since(self, position: int) -> list[tuple[float, str]]:
        """The daemon's log after `position` (see log_size): (milliseconds of the epoch, message)."""
        with Path(self.paths.daemon_log).open("rb") as log:
            log.seek(position)
            records = [json.loads(line) for line in log.read().splitlines()]
        return [(datetime.fromisoformat(r["time"]).timestamp() * 1000, r["message"]) for r in records]

    def steps_since(self, position: int) -> dict[str, float]:
        """Milliseconds by step id."""
        said = self.said_since(position)
        return {found[1]: float(found[2]) for _, message in said if (found := TOOK.match(message))}

    def end(self) -> None:
        with self.client() as client:
            try:
                for vm in client.list_vms():
                    client.delete_vm(vm["id"]).wait()
            finally:
                client.stop_daemon()

    def log_size(self) -> int:
        return Path(self.paths.daemon_log).stat().st_size


@contextmanager
def home(config: str = "") -> Iterator[Home]:
    """A Home; its VMs, its daemon and its folder are gone afterwards."""
    # beside the artifacts: hard links, and short enough for a socket's name
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=artifacts().home.parent))
    made = Home(folder, config=config)
    try:
        yield made
    finally:
        try:
            made.end()
        finally:
            end_strays(folder)
            shutil.rmtree(folder)


def end_strays(folder: Path) -> None:
    """Kill processes that work in the folder: after a failure there may be machines."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder):
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:  # it ended meanwhile
            continue
