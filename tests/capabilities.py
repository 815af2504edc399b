"""Named capabilities: what a test needs from the host, and whether this host has it.

A test that cannot run here says so by a name from this table, never by a bare skip:

    pytestmark = require("root", "qemu")          # a module or one test, decided before it starts
    demand("reflink")                             # inside a test or fixture

The run's summary prints every capability that was asked for and missing, with the reason. With CI set,
one that CI must have (`must`) and has not fails the run: a skip must not turn into a habit.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import functools
import glob
import importlib.util
import os
import platform
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from banger.system import kvm
from banger.system.host_packages import search_path

PATH = search_path()


@dataclass(frozen=True)
class Capability:
    """probe returns "" when the host has it, else the reason why not, in one line."""

    what: str
    probe: Callable[[], str]
    must: bool = False


def _root() -> str:
    return "" if os.geteuid() == 0 else f"running as uid {os.geteuid()}"


def _program(*names: str) -> Callable[[], str]:
    def probe() -> str:
        lacking = [name for name in names if shutil.which(name, path=PATH) is None]
        return f"not installed: {', '.join(lacking)}" if lacking else ""

    return probe


def _module(name: str) -> Callable[[], str]:
    return lambda: "" if importlib.util.find_spec(name) else f"not in this environment: {name}"


def _device(path: str) -> Callable[[], str]:
    def probe() -> str:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return f"{path}: {error.strerror}"
        return ""

    return probe


def _status(*argv: str) -> str:
    """ "" when the program ends well, else why not."""
    program = shutil.which(argv[0], path=PATH)
    if program is None:
        return f"not installed: {argv[0]}"
    try:
        done = subprocess.run([program, *argv[1:]], capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return f"{argv[0]} did not end within 60 s"
    if done.returncode == 0:
        return ""
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"{' '.join(argv)}: {said[-1] if said else f'exit status {done.returncode}'}"


def _netns() -> str:
    return _root() or _status("unshare", "--net", "true")


def _loop() -> str:
    return _root() or ("" if os.path.exists("/dev/loop-control") else "/dev/loop-control is missing")


def firecracker_path() -> str | None:
    """The real Firecracker for tests: BANGER_TEST_FIRECRACKER, else PATH."""
    return os.environ.get("BANGER_TEST_FIRECRACKER") or shutil.which("firecracker", path=PATH)


def _firecracker() -> str:
    path = firecracker_path()
    if path is None:
        return "no firecracker on PATH, and BANGER_TEST_FIRECRACKER is not set"
    return _status(path, "--version")


def _kvm_usable() -> str:
    """Whether KVM runs a stock kernel; banger's own probe answers with a tiny guest."""
    present = _device("/dev/kvm")()
    if present:
        return present
    # in a thread: the caller may be inside an event loop already
    with ThreadPoolExecutor(1) as thread:
        status = thread.submit(asyncio.run, kvm.probe_kvm()).result()
    return "" if status.usable else status.reason


def _device_mapper() -> str:
    if _root():
        return _root()
    if not os.path.exists("/dev/mapper/control"):
        return "/dev/mapper/control is missing: no device-mapper in this kernel"
    return _status("dmsetup", "version")


FICLONE = 0x40049409


def _reflink() -> str:
    """Whether files in the temporary folder can share blocks (FICLONE)."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a"), Path(folder, "b")
        source.write_bytes(b"x" * 4096)
        with source.open("rb") as here, target.open("wb") as there:
            try:
                fcntl.ioctl(there.fileno(), FICLONE, here.fileno())
            except OSError as error:
                return f"{tempfile.gettempdir()}: {errno.errorcode.get(error.errno or 0, '?')} from FICLONE"
    return ""


def _vsock_loopback() -> str:
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
            probe.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    except OSError as error:
        return f"AF_VSOCK: {error.strerror}"
    return ""


def _sanitizers() -> str:
    lacking = _program("clang")()
    if lacking:
        return lacking
    runtime = "/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.asan-*.a"
    return "" if glob.glob(runtime) else "clang's address sanitizer runtime is not installed"


def _own_mounts() -> str:
    """A mount namespace, as root or in a user namespace, with mounts made read-only below it."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    words = ["--mount", "sh", "-c", "mount -t tmpfs tmpfs /tmp"]
    return _status("unshare", *as_root, *words)


def _tun() -> str:
    """A tap can be made (and goes with its descriptor)."""
    if _root():
        return _root()
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/net/tun: {error.strerror}"
    try:
        # TUNSETIFF with IFF_TAP | IFF_NO_PI
        fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", b"bgr-probe%d", 0x0002 | 0x1000))
    except OSError as error:
        return f"TUNSETIFF: {error.strerror}"
    finally:
        os.close(descriptor)
    return ""


def _emulator() -> str:
    if platform.machine() != "x86_64":
        return f"QEMU's microvm machine is for x86_64, this is {platform.machine()}"
    return _status("qemu-system-x86_64", "--version")


def _environment(name: str, what: str) -> Callable[[], str]:
    return lambda: "" if os.environ.get(name) else f"{name} is not set: {what}"


CAPABILITIES: dict[str, Capability] = {
    "root": Capability("runs as root", _root, must=True),
    "netns": Capability("can make network namespaces", _netns, must=True),
    "tun": Capability("can make taps", _tun, must=True),
    "loop": Capability("has loop devices", _loop, must=True),
    "nft": Capability("has nftables", _program("nft"), must=True),
    "e2fsprogs": Capability("has e2fsprogs", _program("mke2fs", "debugfs", "e2fsck"), must=True),
    "qemu": Capability("has QEMU for x86_64", _emulator, must=True),
    "mmdebstrap": Capability("can build a Debian image", _program("mmdebstrap", "gpgv"), must=True),
    "gpg": Capability("can make throw-away signing keys", _program("gpg", "gpg-agent", "gpgv"), must=True),
    "git": Capability("has git", _program("git"), must=True),
    "rsync": Capability("has rsync", _program("rsync")),
    "ssh": Capability("has an ssh client", _program("ssh", "ssh-keygen"), must=True),
    "dnsmasq": Capability("has dnsmasq", _program("dnsmasq"), must=True),
    "dig": Capability("has dig", _program("dig"), must=True),
    "iptables": Capability("has iptables", _program("iptables-nft", "iptables-legacy"), must=True),
    "ufw": Capability("has ufw", _program("ufw"), must=True),
    "resolved": Capability(
        "can run a systemd-resolved that is not installed", _program("dbus-daemon", "dpkg-deb"), must=True
    ),
    "ping": Capability("has ping", _program("ping"), must=True),
    "clang": Capability("has clang with its sanitizers", _sanitizers, must=True),
    "atheris": Capability("has atheris, libFuzzer for Python", _module("atheris")),
    "own-mounts": Capability("can mount in a namespace of its own", _own_mounts, must=True),
    "kvm": Capability("/dev/kvm opens", _device("/dev/kvm")),
    "kvm-usable": Capability("KVM runs stock guest kernels", _kvm_usable),
    "firecracker": Capability("has a real Firecracker", _firecracker),
    "device-mapper": Capability("has device-mapper", _device_mapper),
    "reflink": Capability("temporary files can share blocks", _reflink),
    "vhost-vsock": Capability("/dev/vhost-vsock opens", _device("/dev/vhost-vsock")),
    "vsock": Capability("has AF_VSOCK sockets", _vsock_loopback),
    "lab": Capability("is the lab host", _environment("BANGER_LAB", "run by `make test-lab`")),
    "docker-registry": Capability("can run a local OCI registry", _program("docker-registry")),
    "skopeo": Capability("has skopeo, the oracle of the OCI tests", _program("skopeo")),
    "pzstd": Capability("packs layers as only some tools do", _program("pzstd")),
    "umoci": Capability("makes images by other people's tools", _program("umoci")),
    "busybox": Capability("has a busybox to make images of", _program("busybox")),
    "htpasswd": Capability("makes a registry's accounts", _program("htpasswd")),
}

MARKS: dict[str, tuple[str, ...]] = {
    "host": ("root",),
    "guest": ("root", "qemu"),
    "firecracker": ("firecracker",),
    "lab": ("lab",),
}
"""What the markers of pyproject.toml stand for."""

asked: dict[str, str] = {}
"""Capabilities that this run asked for and that are missing, with the reason."""


@functools.cache
def reason(name: str) -> str:
    """Why the host lacks a capability; "" when it has it. Probed once a run."""
    try:
        return CAPABILITIES[name].probe()
    except OSError as error:
        return f"the probe failed: {error}"


def has(name: str) -> bool:
    return not reason(name)


def require(*names: str) -> pytest.MarkDecorator:
    """A mark for tests that need these capabilities."""
    for name in names:
        CAPABILITIES[name]
    return pytest.mark.needs(*names)


def demand(*names: str) -> None:
    """Skip the running test, naming the first capability that is missing."""
    for name in names:
        lacking = reason(name)
        if lacking:
            asked[name] = lacking
            pytest.skip(f"needs the capability {name}: {lacking}")


def demanded_by(item: pytest.Item) -> list[str]:
    """The capabilities an item's marks name, in order, without repeats."""
    names: list[str] = []
    for mark in item.iter_markers():
        names += MARKS.get(mark.name, ()) if mark.name != "needs" else mark.args
    return list(dict.fromkeys(names))


def summary() -> list[str]:
    """What the end of a run says."""
    if not asked:
        return ["capabilities missing: none"]
    return ["capabilities missing: " + ", ".join(sorted(asked))] + [
        f"  {name} ({CAPABILITIES[name].what}): {why}" for name, why in sorted(asked.items())
    ]


def missing_must(environ: dict[str, str]) -> list[str]:
    """With CI set: the asked-for capabilities that CI must have and has not."""
    if environ.get("CI", "") in ("", "0", "false"):
        return []
    return sorted(name for name in asked if CAPABILITIES[name].must)
