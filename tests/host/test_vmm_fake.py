"""The fake Firecracker beside the real one: the same calls, the same answers.

Where there is no real Firecracker the fake's answers are checked against those written down here, which were
the real one's (1.17). What differs on purpose is not asked: exact columns and field lists in JSON faults.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.vmm.protocol import NetworkInterface
from tests import capabilities
from tests.fakes.firecracker import IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUNSETIFF
from tests.fakes.installed import DirectLauncher, install_fake_firecracker
from tests.fakes.machines import make_vm

pytestmark = [pytest.mark.anyio, pytest.mark.host]

real = pytest.param("real", marks=capabilities.require("firecracker"))
TUNSETPERSIST = 0x400454CB
BEFORE = "The requested operation is not supported before starting the microVM."
AFTER = "The requested operation is not supported after starting the microVM."
JSON = "An error occurred when deserializing the json body of a request: "
VCPUS = "Machine config error: The number of vCPUs must be greater than 0, less than 32"
START = {"action_type": "InstanceStart"}
ROOT = {"drive_id": "root", "is_root_device": False, "path_on_host": "root.img", "is_read_only": True}

# (method, path, body, status, how the fault begins)
CALLS: list[tuple[str, str, object, int, str]] = [
    ("GET", "/version", None, 200, ""),
    ("GET", "/nope", None, 400, "Invalid request method and/or path: GET nope."),
    ("PUT", "/machine-config", {"vcpu_count": 0, "mem_size_mib": 128}, 400, VCPUS),
    ("PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 128}, 400, VCPUS),
    ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 0}, 400, "Machine config error: The memory"),
    ("PUT", "/machine-config", {"vcpu_count": 1}, 400, JSON + "missing field `mem_size_mib`"),
    (
        "PUT",
        "/machine-config",
        {"vcpu_count": 1, "mem_size_mib": 128, "x": 1},
        400,
        JSON + "unknown field `x`",
    ),
    ("PUT", "/machine-config", None, 400, "Empty PUT request."),
    ("PUT", "/actions", {"action_type": "Nope"}, 400, JSON + "unknown variant `Nope`"),
    (
        "PUT",
        "/actions",
        START,
        400,
        "Start microvm error: Cannot start microvm without kernel configuration.",
    ),
    ("PUT", "/actions", {"action_type": "FlushMetrics"}, 400, BEFORE),
    ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}, 400, BEFORE),
    ("PATCH", "/vm", {"state": "Paused"}, 400, BEFORE),
    (
        "PUT",
        "/boot-source",
        {"kernel_image_path": "nope"},
        400,
        "Boot source error: The kernel file cannot be",
    ),
    (
        "PUT",
        "/boot-source",
        {"kernel_image_path": "vmlinux", "initrd_path": "nope"},
        400,
        "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions.",
    ),
    ("PUT", "/drives/a", {**ROOT}, 400, "The id from the path does not match the id from the body!"),
    (
        "PUT",
        "/drives/a-b",
        {**ROOT, "drive_id": "a-b"},
        400,
        "API Resource IDs can only contain alphanumeric",
    ),
    (
        "PUT",
        "/drives/root",
        {**ROOT, "path_on_host": "nope"},
        400,
        "Drive config error: Unable to create the virtio block device: Virtio backend error: Error"
        " manipulating the backing file: No such file or directory (os error 2) nope",
    ),
    ("PUT", "/drives/root", ROOT, 204, ""),
    ("PUT", "/drives/one", {**ROOT, "drive_id": "one", "is_root_device": True}, 204, ""),
    (
        "PUT",
        "/drives/two",
        {**ROOT, "drive_id": "two", "is_root_device": True},
        400,
        "Drive config error: A root block device already exists!",
    ),
    (
        "PUT",
        "/network-interfaces/eth0",
        {"iface_id": "eth0", "host_dev_name": "a-name-that-is-too-long"},
        400,
        "Network config error: Could not create the network device: Open tap device failed: Invalid",
    ),
    (
        "PUT",
        "/network-interfaces/eth0",
        {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "xx"},
        400,
        JSON + "The provided MAC address is invalid.",
    ),
    (
        "PUT",
        "/vsock",
        {"guest_cid": 3, "uds_path": "vmlinux"},
        400,
        "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix"
        " socket: Address already in use (os error 98)",
    ),
    ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "first.sock"}, 204, ""),
    ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v.sock"}, 204, ""),
    ("PUT", "/entropy", {}, 204, ""),
    ("PUT", "/metrics", {"metrics_path": "metrics.json"}, 204, ""),
    (
        "PUT",
        "/metrics",
        {"metrics_path": "other.json"},
        400,
        "Metrics error: Cannot initialize the metrics system",
    ),
    ("PUT", "/boot-source", {"kernel_image_path": "root.img"}, 204, ""),
    (
        "PUT",
        "/actions",
        START,
        400,
        "Start microvm error: System configuration error: Cannot load kernel due to",
    ),
    ("PUT", "/boot-source", {"kernel_image_path": "vmlinux", "initrd_path": "initrd.img"}, 204, ""),
    ("PUT", "/actions", START, 204, ""),
    ("PUT", "/actions", START, 400, AFTER),
    ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128}, 400, AFTER),
    ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v3.sock"}, 400, AFTER),
    ("PUT", "/drives/new", {**ROOT, "drive_id": "new"}, 400, "PCI is not enabled"),
    ("PUT", "/entropy", {}, 400, AFTER),
    ("PUT", "/metrics", {"metrics_path": "other.json"}, 400, AFTER),
    ("PUT", "/actions", {"action_type": "FlushMetrics"}, 204, ""),
    ("PATCH", "/vm", {"state": "Paused"}, 204, ""),
    ("PATCH", "/vm", {"state": "Paused"}, 204, ""),
    ("PUT", "/actions", {"action_type": "FlushMetrics"}, 204, ""),
    ("PATCH", "/vm", {"state": "Nope"}, 400, JSON + "unknown variant `Nope`, expected `Paused` or `Resumed`"),
    ("PATCH", "/vm", {"state": "Resumed"}, 204, ""),
    ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}, 204, ""),
]


@pytest.fixture(params=["fake", real])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "fake":
        # the keys must not end this guest: the real one's has no kernel that would hear them
        return install_fake_firecracker(tmp_path, {"obeys": False})
    path = capabilities.firecracker_path()
    assert path is not None
    return path


@pytest.fixture
def launcher() -> Iterator[DirectLauncher]:
    launcher = DirectLauncher()
    yield launcher
    launcher.close()


class Client:
    """Raw bytes, in the VM's folder."""

    def __init__(self, vm_dir: str) -> None:
        self.folder = os.open(vm_dir, os.O_PATH)
        try:
            self.sock = self.connected()
        except OSError:
            os.close(self.folder)
            raise

    def connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        try:
            sock.connect(f"/proc/self/fd/{self.folder}/fc.sock")
        except OSError:
            sock.close()
            raise
        return sock

    def call(self, method: str, path: str, body: object = None) -> tuple[int, str, bytes]:
        payload = b"" if body is None else json.dumps(body).encode()
        length = f"Content-Length: {len(payload)}\r\n" if body is not None else ""
        self.sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n".encode() + payload)
        reply = self.sock.recv(1 << 16)
        head, _, text = reply.partition(b"\r\n\r\n")
        fault = json.loads(text).get("fault_message", "") if text else ""
        return int(head.split()[1]), fault, head

    def close(self) -> None:
        self.sock.close()
        os.close(self.folder)


async def started(program: str, vm_dir: str, launcher: DirectLauncher) -> Client:
    argv = [program, "--id", "x", "--api-sock", "fc.sock", "--log-path", "monitor.log", "--level", "Info"]
    await launcher.launch(argv, role="monitor", vm_id="x", vm_dir=vm_dir, stdout="console.log")
    async with asyncio.timeout(60):
        while True:
            try:
                return Client(vm_dir)
            except OSError:
                await asyncio.sleep(0.005)


async def test_the_same_calls_have_the_same_answers(
    program: str, tmp_path: Path, launcher: DirectLauncher
) -> None:
    client = await started(program, make_vm(tmp_path).vm_dir, launcher)
    wrong = []
    for method, path, body, status, fault in CALLS:
        got_status, got_fault, _ = client.call(method, path, body)
        if got_status != status or not got_fault.startswith(fault):
            wrong.append(f"{method} {path} {body}: {got_status} {got_fault}")
    client.close()
    assert wrong == []


async def test_heads_and_limits(program: str, tmp_path: Path, launcher: DirectLauncher) -> None:
    client = await started(program, make_vm(tmp_path).vm_dir, launcher)
    assert client.call("PUT", "/entropy", {})[2] == (
        b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive"
    )
    _, _, head = client.call("GET", "/nope")
    length = re.search(rb"Content-Length: (\d+)$", head)
    assert length is not None
    assert head.startswith(
        b"HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type:"
    )
    others = [client.connected() for _ in range(10)]
    refused = others[9].recv(1 << 12)
    assert refused.startswith(b"HTTP/1.1 503\r\n"), refused
    assert refused.endswith(b'{ "error": "Too many open connections" }')
    for other in others:
        other.close()
    client.sock.sendall(b"PUT /entropy HTTP/1.1\r\nContent-Length: 60000\r\n\r\n")
    assert b"Request payload with size 60000 is larger than the limit of 51200" in client.sock.recv(1 << 12)
    client.close()


async def test_habits_at_its_end(program: str, tmp_path: Path, launcher: DirectLauncher) -> None:
    """TERM ends it at once, its sockets stay, and so the next one does not start."""
    vm_dir = make_vm(tmp_path).vm_dir
    client = await started(program, vm_dir, launcher)
    client.call("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v.sock"})
    client.close()
    launcher.started[0].terminate()
    assert await asyncio.to_thread(launcher.started[0].wait, 60) == -15
    assert {"fc.sock", "v.sock"} <= set(os.listdir(vm_dir))
    argv = [program, "--id", "x", "--api-sock", "fc.sock", "--log-path", "other.log"]
    await launcher.launch(argv, role="monitor", vm_id="x", vm_dir=vm_dir, stdout="console.log")
    assert await asyncio.to_thread(launcher.started[1].wait, 60) == 1
    log = Path(vm_dir, "other.log").read_text()
    assert "Failed to open the API socket at: fc.sock. Check that it is not already used." in log
    assert "Firecracker exiting with error. exit_code=1" in log


@capabilities.require("tun")
async def test_a_tap_is_opened_and_held(program: str, tmp_path: Path, launcher: DirectLauncher) -> None:
    name = f"bgrvmm{os.getpid() % 100_000}"
    spec = make_vm(tmp_path, network=(NetworkInterface(tap=name, mac="06:00:ac:10:00:02"),))
    client = await started(program, spec.vm_dir, launcher)
    body = {"iface_id": "eth0", "host_dev_name": name, "guest_mac": "06:00:ac:10:00:02"}
    request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tap, TUNSETIFF, request)
        status, fault, _ = client.call("PUT", "/network-interfaces/eth0", body)
        assert (status, "Device or resource busy (os error 16)" in fault) == (400, True)
        fcntl.ioctl(tap, TUNSETPERSIST, 1)
        os.close(tap)
        assert client.call("PUT", "/network-interfaces/eth0", body)[0] == 204
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        with pytest.raises(OSError, match="busy"):
            fcntl.ioctl(tap, TUNSETIFF, request)
        launcher.started[0].kill()
        await asyncio.to_thread(launcher.started[0].wait, 60)
        fcntl.ioctl(tap, TUNSETIFF, request)
        fcntl.ioctl(tap, TUNSETPERSIST, 0)
    finally:
        os.close(tap)
        client.close()
