"""`banger vm cp` of one big file and of many small ones, in and out, against raw bytes through the same vsock
and against scp and rsync over the guest's IP address.

Raw: a program in the guest that sends zeros or takes bytes, and reads or writes no file; as many bytes as the
files hold. Sizes: BENCH_COPY_MIB (128), BENCH_COPY_FILES (2000, of 2 KiB, 200 a folder). At most 3 rounds,
each with a target that is not there; what the guest still has to write is waited for outside the clock.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.harness import p50
from bench.home import BANGER, Home, home

VM = "copied"
PORT = 5000
SMALL_BYTES = 2048
A_FOLDER = 200
PIECE = 256 << 10
BRING_RSYNC = "/opt/rsync"
MAX_ROUNDS = 3


class Guest:
    """A running VM with the raw program and rsync in it."""

    def __init__(self, made: Home, folder: Path) -> None:
        self.home = made
        self.folder = folder
        made.run("vm", "run", "--name", VM, "-d", "--memory", "512M", "--disk-size", "8G")
        self.vsock = made.vm_dir(VM) / "v.sock"
        self.address = str(made.client().show_vm(VM)["runtime"].get("guest_ip", ""))
        program = folder / "raw_vsock"
        words = ["-target", f"{os.uname().machine}-linux-musl", "-O2", "-static", "-o", str(program)]
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *words, str(Path(__file__).with_name("raw_vsock.c"))],
            check=True,
            timeout=300,
        )
        made.run("vm", "cp", "-q", str(program), f"{VM}:/usr/local/bin/raw_vsock")
        self.sh(f"mkdir -p {BRING_RSYNC}; raw_vsock >/dev/null 2>&1 </dev/null")
        rsync = shutil.which("rsync")
        if rsync is None:
            raise RuntimeError("no rsync on this host")
        for path in with_libraries(rsync):
            made.run("vm", "cp", "-qL", path, f"{VM}:{BRING_RSYNC}/")
            if "/ld-" in path:
                self.loader = f"{BRING_RSYNC}/{os.path.basename(path)}"
        self.ssh = (
            *(
                "ssh",
                "-F",
                "/dev/null",
                "-i",
                str(made.folder / "state/ssh/id_ed25519"),
                "-o",
                "BatchMode=yes",
            ),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
        )
        self._until_sshd()

    def sh(self, script: str) -> str:
        return self.home.run("vm", "exec", VM, "--", "sh", "-ec", script)

    def _until_sshd(self) -> None:
        deadline = time.monotonic() + 180
        while subprocess.run([*self.ssh, f"root@{self.address}", "true"], timeout=60, check=False).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError("no sshd in the guest")
            time.sleep(1)

    def raw(self, kind: bytes, count: int) -> None:
        """Through the machine's own vsock, as banger's agent is reached."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(600)
            connection.connect(str(self.vsock))
            connection.sendall(b"CONNECT %d\n" % PORT)
            while connection.recv(1) != b"\n":
                pass
            connection.sendall(kind + count.to_bytes(8, "little"))
            buffer = bytearray(PIECE)
            view = memoryview(buffer)
            if kind == b"r":
                while count > 0:
                    count -= connection.recv_into(buffer)
            else:
                while count > 0:
                    count -= connection.send(view[: min(count, PIECE)])
                connection.recv(1)


def with_libraries(program: str) -> list[str]:
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True, timeout=30).stdout
    return [program, *dict.fromkeys(word for word in said.split() if word.startswith("/"))]


def make_files(folder: Path, mib: int, files: int) -> None:
    with (folder / "big").open("wb") as big:
        for _ in range(mib):
            big.write(os.urandom(1 << 20))
    for number in range(files):
        below = folder / "small" / f"{number // A_FOLDER}"
        if number % A_FOLDER == 0:
            below.mkdir(parents=True)
        (below / f"{number}").write_bytes(os.urandom(SMALL_BYTES))


def cases(guest: Guest, what: str, size: int, *, inwards: bool) -> dict[str, Callable[[], None]]:
    """Each copies folder/WHAT to /root/in/WHAT, or /root/from/WHAT to folder/out/WHAT."""
    env = guest.home.env
    remote = f"root@{guest.address}:"

    def call(*words: str) -> None:
        subprocess.run(words, env=env, check=True, stdin=subprocess.DEVNULL, timeout=3600)

    rsync = ("rsync", "-a", "-e", " ".join(guest.ssh))
    rsync_there = f"--rsync-path={guest.loader} --library-path {BRING_RSYNC} {BRING_RSYNC}/rsync"
    scp = ("scp", *guest.ssh[1:], "-rpq")
    if inwards:
        source, target = str(guest.folder / what), "/root/in/"
        return {
            "raw": lambda: guest.raw(b"w", size),
            "banger": lambda: call(BANGER, "vm", "cp", "-q", source, f"{VM}:{target}"),
            "scp": lambda: call(*scp, source, remote + target),
            "rsync": lambda: call(*rsync, rsync_there, source, remote + target),
        }
    source, target = f"/root/from/{what}", str(guest.folder / "out") + "/"
    return {
        "raw": lambda: guest.raw(b"r", size),
        "banger": lambda: call(BANGER, "vm", "cp", "-q", f"{VM}:{source}", target),
        "scp": lambda: call(*scp, remote + source, target),
        "rsync": lambda: call(*rsync, rsync_there, remote + source, target),
    }


def run(count: int) -> str:
    mib, files = (
        int(os.environ.get("BENCH_COPY_MIB", "128")),
        int(os.environ.get("BENCH_COPY_FILES", "2000")),
    )
    folder = Path(tempfile.mkdtemp(prefix="bench-copy-"))
    taken: dict[str, dict[str, list[float]]] = {}
    try:
        make_files(folder, mib, files)
        with home() as made:
            guest = Guest(made, folder)
            guest.sh("mkdir /root/from")
            for what in ("big", "small"):
                made.run("vm", "cp", "-q", str(folder / what), f"{VM}:/root/from/")
            for number in range(max(1, min(count, MAX_ROUNDS))):
                for what, size in (("big", mib << 20), ("small", files * SMALL_BYTES)):
                    for inwards in (True, False):
                        shown = f"{what} {'in' if inwards else 'out'}"
                        found = cases(guest, what, size, inwards=inwards)
                        take(guest, found, taken.setdefault(shown, {}), number)
    finally:
        shutil.rmtree(folder)
    head = (
        f"{mib} MiB in one file; {files} files of {SMALL_BYTES} bytes. p50 of {min(count, MAX_ROUNDS)}.\n\n"
    )
    return head + table(taken)


def take(
    guest: Guest, found: Mapping[str, Callable[[], None]], samples: dict[str, list[float]], number: int
) -> None:
    names = list(found)
    first = number % len(names)
    for name in names[first:] + names[:first]:
        (guest.folder / "out").mkdir()
        guest.sh("rm -rf /root/in; mkdir /root/in; sync")
        began = time.perf_counter()
        found[name]()
        samples.setdefault(name, []).append(time.perf_counter() - began)
        shutil.rmtree(guest.folder / "out")


def table(taken: Mapping[str, Mapping[str, list[float]]]) -> str:
    names = ("raw", "banger", "scp", "rsync")
    lines = [
        "| copy | raw s | banger s | scp s | rsync s | banger to raw | scp to banger | rsync to banger |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for shown, samples in taken.items():
        raw, banger, scp, rsync = (p50(samples[name]) for name in names)
        lines.append(
            f"| {shown} | {raw:.2f} | {banger:.2f} | {scp:.2f} | {rsync:.2f}"
            f" | {banger / raw:.2f} | {scp / banger:.2f} | {rsync / banger:.2f} |"
        )
    return "\n".join(lines)
