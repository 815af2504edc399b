"""A Firecracker without a machine: a process that speaks the real API on a Unix socket.

Habits of the real one, compared with 1.17 (tests/host/test_vmm_fake.py): it never unlinks a socket and exits
with 1 where there is one, dies at once on SIGTERM, answers one request at a time, takes ten connections
and 51,200 bytes, checks every body against the API definition, knows what is allowed before and after
the start, opens disks and taps when they are named, and appends nothing to its log and metrics files.
After InstanceStart it plays a guest (fc_guest). The plan, a JSON file, makes it misbehave:

    {"version": "1.16.2", "start_seconds": 0, "boot_seconds": 0, "ready": true, "obeys": true,
     "shutdown_seconds": 0, "dies_after": 2.0,
     "faults": [{"do": "fail|hang|lie|die|slow|close", "path": "/drives/*", "method": "PUT", "call": 3,
                 "times": 1, "status": 400, "fault": "…", "body": "…", "seconds": 0.5}]}

A fault fits by path pattern and method, or by the number of the call (from 1), or always.
"""

from __future__ import annotations

import fcntl
import fnmatch
import json
import os
import re
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fakes.fc_guest import Guest, Loop, Stream
from tests.fakes.fc_schema import Mismatch, Schema

BODY_LIMIT = 51_200
CONNECTIONS = 10
BEFORE = "The requested operation is not supported before starting the microVM."
AFTER = "The requested operation is not supported after starting the microVM."
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
OPTIONS = ("--id", "--api-sock", "--log-path", "--level", "--metrics-path", "--module")
SWITCHES = ("--show-level", "--show-log-origin", "--boot-timer", "--enable-pci", "--no-seccomp")

Body = dict[str, Any]


class Refusal(Exception):
    """Answered with status 400 and this fault_message."""


class FakeFirecracker:
    def __init__(self, options: dict[str, str], *, schema: Schema, plan: Body) -> None:
        self.plan, self.schema, self.options = plan, schema, options
        self.id = options.get("--id", "anonymous-instance")
        self.version: str = plan.get("version", "1.16.2")
        self.state = "Not started"
        self.loop = Loop()
        self.machine: Body = {
            "vcpu_count": 1,
            "mem_size_mib": 128,
            "smt": False,
            "track_dirty_pages": False,
            "huge_pages": "None",
        }
        self.boot_source: Body | None = None
        self.drives: dict[str, Body] = {}
        self.interfaces: dict[str, Body] = {}
        self.vsock: Body | None = None
        self.entropy: Body | None = None
        self.serial_path = ""
        self.console_fd = 1
        self.held: dict[str, int] = {}  # descriptors of disks and taps, by API path
        self.metrics_fd = -1
        self.calls = 0
        self.hung = False
        self.api_streams: set[Stream] = set()
        self.vsock_listener: socket.socket | None = None
        self.guest = Guest(self.loop, plan, console=self.write_console)
        self.guest.end = self.exit
        log = options.get("--log-path")
        self.log_fd = os.open(log, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK, 0o644) if log else 1
        if "--metrics-path" in options:
            self.metrics_fd = os.open(options["--metrics-path"], os.O_CREAT | os.O_RDWR, 0o644)

    # -- process ---------------------------------------------------------------------------------

    def log(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000000000", time.gmtime())
        os.write(self.log_fd, f"{stamp} [{self.id}:main] {text}\n".encode())

    def write_console(self, text: str) -> None:
        os.write(self.console_fd, text.encode())

    def write_metrics(self) -> None:
        if self.metrics_fd >= 0:
            line = {
                "utc_timestamp_ms": int(time.time() * 1000),
                "put_api_requests": {"actions_count": self.calls},
            }
            os.write(self.metrics_fd, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def exit(self, code: int) -> None:
        self.write_metrics()
        how = "successfully." if code == 0 else "with error."
        self.log(f"Firecracker exiting {how} exit_code={code}")
        os._exit(code)

    def run(self) -> None:
        self.log(f"Running Firecracker v{self.version}")
        time.sleep(float(self.plan.get("start_seconds", 0.0)))
        path = self.options.get("--api-sock", "/run/firecracker.socket")
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(path)
        except OSError:
            message = f"Failed to open the API socket at: {path}. Check that it is not already used."
            self.log(f"RunWithApiError error: {message}")
            sys.stderr.write(f'Error: RunWithApi(FailedToBindSocket("{path}"))\n')
            self.exit(1)
        listener.listen(64)
        listener.setblocking(False)

        def accept(_: int) -> None:
            self.accept_api(listener.accept()[0])

        self.loop.selector.register(listener, selectors.EVENT_READ, accept)
        self.log("API server started.")
        self.loop.run()

    # -- HTTP ------------------------------------------------------------------------------------

    def accept_api(self, sock: socket.socket) -> None:
        self.api_streams = {stream for stream in self.api_streams if stream.open}
        stream = Stream(self.loop, sock, self.receive)
        if len(self.api_streams) >= CONNECTIONS:
            body = b'{ "error": "Too many open connections" }'
            stream.send(_response(503, body, last=True))
            stream.finish()
            return
        self.api_streams.add(stream)

    def receive(self, stream: Stream) -> None:
        while not self.hung and stream.open:
            head, found, _ = bytes(stream.inbox).partition(b"\r\n\r\n")
            if not found:
                return
            length = 0
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.strip().lower() == b"content-length":
                    length = int(value)
            if length > BODY_LIMIT:
                self.refuse_http(
                    stream,
                    f"Request payload with size {length} is larger than the limit of {BODY_LIMIT}"
                    " allowed by server.",
                )
                return
            end = len(head) + 4 + length
            if len(stream.inbox) < end:
                return
            body = bytes(stream.inbox[len(head) + 4 : end])
            del stream.inbox[:end]
            method, path, protocol = [*head.split(b"\r\n")[0].decode().split(" "), "", ""][:3]
            if protocol != "HTTP/1.1" or method not in ("GET", "PUT", "PATCH", "DELETE"):
                self.refuse_http(stream, "Invalid HTTP Method: Unsupported HTTP method.")
                return
            self.serve(stream, method, path=path, body=body)

    def refuse_http(self, stream: Stream, text: str) -> None:
        # a bare line break inside the string, as the real one has it: this is no valid JSON
        body = f'{{ "error": "{text}\nAll previous unanswered requests will be dropped." }}'
        stream.inbox.clear()
        stream.send(_response(400, body.encode()))

    def serve(self, stream: Stream, method: str, *, path: str, body: bytes) -> None:
        self.calls += 1
        self.log(f'The API server received a {method.title()} request on "{path}".')
        fault = self.fault_for(method, path)
        match fault.get("do"):
            case "hang":
                self.hung = True
                return
            case "die":
                os.kill(os.getpid(), fault.get("signal", signal.SIGKILL))
            case "close":
                stream.close()
                return
            case "lie":
                stream.send(
                    _response(int(fault.get("status", 200)), str(fault.get("body", "not json")).encode())
                )
                return
            case "fail":
                text = fault.get("fault", "told to fail")
                reply = json.dumps({"fault_message": text}).encode()
                stream.send(_response(int(fault.get("status", 400)), reply))
                return
            case "slow":
                self.loop.later(
                    float(fault.get("seconds", 0.2)),
                    lambda: self.answer(stream, method, path=path, body=body),
                )
                return
        self.answer(stream, method, path=path, body=body)

    def fault_for(self, method: str, path: str) -> Body:
        for fault in self.plan.get("faults", ()):
            fits = (
                fnmatch.fnmatchcase(path, fault.get("path", "*"))
                and fault.get("method", method) == method
                and fault.get("call", self.calls) == self.calls
            )
            if fits and fault.get("times", 1) > 0:
                fault["times"] = fault.get("times", 1) - 1
                found: Body = fault
                return found
        return {}

    def answer(self, stream: Stream, method: str, *, path: str, body: bytes) -> None:
        operation = self.schema.operation(method, path)
        status, reply = 204, None
        try:
            if operation is None:
                raise Refusal(f"Invalid request method and/or path: {method} {path.lstrip('/')}.")
            reply = self.dispatch(method, path=path, value=self.parse(operation, method, body=body))
            status = 204 if reply is None else 200
        except Refusal as refusal:
            status, reply = 400, {"fault_message": str(refusal)}
            self.log(f"Received Error. Status code: 400 Bad Request. Message: {refusal}")
        if operation is not None and reply is not None:
            expected = self.schema.reply_of(operation, status)
            if expected is not None:
                self.schema.check(reply, expected)  # the fake itself must not lie unasked
        encoded = b"" if reply is None else json.dumps(reply, separators=(",", ":")).encode()
        stream.send(_response(status, encoded))

    def parse(self, operation: Body, method: str, *, body: bytes) -> Body:
        expected = self.schema.body_of(operation)
        if method == "GET":
            if body:
                raise Refusal("GET request cannot have a body.")
            return {}
        if expected is None:
            return {}
        if not body:
            raise Refusal(f"Empty {method} request.")
        try:
            value = json.loads(body)
            self.schema.check(value, expected)
        except (Mismatch, ValueError) as error:
            said = str(error) if isinstance(error, Mismatch) else "EOF while parsing an object"
            raise Refusal(
                f"An error occurred when deserializing the json body of a request: {said} at line 1 column 1."
            ) from None
        found: Body = value
        return found

    # -- API -------------------------------------------------------------------------------------

    def dispatch(self, method: str, *, path: str, value: Body) -> Body | None:
        """The reply's body, None for 204."""
        _, noun, *rest = path.split("/")
        if method == "GET":
            return self.get(noun, rest)
        started = self.state != "Not started"
        if noun == "actions":
            self.act(value["action_type"], started)
            return None
        if (method, noun) == ("PATCH", "vm"):
            _demand(started, BEFORE)
            self.state = "Paused" if value["state"] == "Paused" else "Running"
            return None
        if method == "PATCH" and noun == "drives":
            _demand(started, BEFORE)
            return None
        if noun in ("drives", "network-interfaces"):
            self.check_id(noun, rest[0], value=value)
            _demand(not started, "PCI is not enabled")
        _demand(not started, AFTER)
        handlers: dict[str, Callable[[Body], None]] = {
            "machine-config": self.put_machine,
            "boot-source": self.put_boot_source,
            "drives": self.put_drive,
            "network-interfaces": self.put_interface,
            "vsock": self.put_vsock,
            "metrics": self.put_metrics,
            "entropy": self.put_entropy,
            "serial": self.put_serial,
            "logger": lambda _: None,
        }
        if noun not in handlers:
            raise Refusal(f"The fake Firecracker does not play {method} {path}.")
        handlers[noun](value)
        return None

    def get(self, noun: str, rest: list[str]) -> Body:
        match noun, rest:
            case "", []:
                return {
                    "id": self.id,
                    "state": self.state,
                    "vmm_version": self.version,
                    "app_name": "Firecracker",
                }
            case "version", []:
                return {"firecracker_version": self.version}
            case "machine-config", []:
                return self.machine
            case "vm", ["config"]:
                return {
                    "machine-config": self.machine,
                    "boot-source": self.boot_source or {"kernel_image_path": ""},
                    "drives": list(self.drives.values()),
                    "network-interfaces": list(self.interfaces.values()),
                    "vsock": self.vsock,
                    "entropy": self.entropy,
                }
            case _:
                raise Refusal(f"The fake Firecracker does not play GET /{noun}.")

    def act(self, action: str, started: bool) -> None:
        if action == "InstanceStart":
            _demand(not started, AFTER)
            self.start()
        elif action == "FlushMetrics":
            _demand(started, BEFORE)
            self.write_metrics()
        else:
            _demand(started, BEFORE)
            if self.state == "Running":
                self.guest.press_keys()

    def start(self) -> None:
        if self.boot_source is None:
            raise Refusal("Start microvm error: Cannot start microvm without kernel configuration.")
        with Path(self.boot_source["kernel_image_path"]).open("rb") as kernel:
            magic = kernel.read(0x206)
        if magic[:4] != b"\x7fELF" and magic[0x202:0x206] != b"HdrS":
            raise Refusal(
                "Start microvm error: System configuration error: Cannot load kernel due to invalid memory"
                " configuration or invalid kernel image: Kernel Loader: failed to load ELF kernel image"
            )
        if self.serial_path:
            try:
                self.console_fd = os.open(self.serial_path, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK, 0o644)
            except OSError as error:
                raise Refusal(
                    "Start microvm error: Failed to create device manager: Error with EventFd:"
                    f" {error.strerror} (os error {error.errno})"
                ) from None
        self.state = "Running"
        self.write_metrics()
        if self.vsock is not None:
            self.guest.boot(self.vsock["uds_path"])
        if "dies_after" in self.plan:
            self.loop.later(float(self.plan["dies_after"]), lambda: os.kill(os.getpid(), signal.SIGKILL))

    def check_id(self, noun: str, name: str, *, value: Body) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise Refusal("API Resource IDs can only contain alphanumeric characters and underscores.")
        if value["drive_id" if noun == "drives" else "iface_id"] != name:
            raise Refusal("The id from the path does not match the id from the body!")

    def put_machine(self, value: Body) -> None:
        if not 1 <= value["vcpu_count"] <= 32:
            raise Refusal(
                "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be"
                " 1 or an even number if SMT is enabled."
            )
        if value["mem_size_mib"] == 0:
            raise Refusal(
                "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured"
                " page size."
            )
        self.machine = {**self.machine, **value}

    def put_boot_source(self, value: Body) -> None:
        for key, what in (
            ("kernel_image_path", "The kernel file cannot be opened:"),
            ("initrd_path", "The initrd file cannot be opened due to invalid path or invalid permissions."),
        ):
            if value.get(key) is not None:
                _openable(value[key], os.O_RDONLY, f"Boot source error: {what} {{}}")
        if len(value.get("boot_args") or "") > 2047:
            raise Refusal("Boot source error: The kernel command line is invalid: Command line too large.")
        self.boot_source = value

    def put_drive(self, value: Body) -> None:
        name = value["drive_id"]
        about = "Drive config error: Unable to create the virtio block device:"
        if value["is_root_device"] and any(
            drive["is_root_device"] and other != name for other, drive in self.drives.items()
        ):
            raise Refusal("Drive config error: A root block device already exists!")
        if value.get("path_on_host") is None:
            raise Refusal(f"{about} Invalid block config.")
        path = value["path_on_host"]
        how = os.O_RDONLY if value.get("is_read_only") else os.O_RDWR
        failed = f"{about} Virtio backend error: Error manipulating the backing file: {{}} {path}"
        self.hold(f"drives/{name}", _openable(path, how, failed, keep=True))
        self.drives[name] = value

    def put_interface(self, value: Body) -> None:
        mac = value.get("guest_mac")
        if mac is not None and not re.fullmatch(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", mac):
            raise Refusal(
                "An error occurred when deserializing the json body of a request: The provided MAC address is"
                " invalid. at line 1 column 64."
            )
        name, tap = value["iface_id"], value["host_dev_name"]
        about = "Network config error: Could not create the network device: Open tap device failed:"
        if len(tap) > 15:
            raise Refusal(f"{about} Invalid interface name")
        if Path("/sys/class/net", tap).exists():
            self.hold(f"network-interfaces/{name}", -1)
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            try:
                fcntl.ioctl(
                    fd, TUNSETIFF, struct.pack("16sH22x", tap.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
                )
            except OSError as error:
                os.close(fd)
                what = "Device or resource busy" if error.errno == 16 else error.strerror
                raise Refusal(
                    f"{about} Error while creating ifreq structure: {what} (os error {error.errno}). Invalid"
                    f" TUN/TAP Backend provided by {tap}. Check our documentation on setting up the network"
                    " devices."
                ) from None
            self.hold(f"network-interfaces/{name}", fd)
        self.interfaces[name] = value

    def put_vsock(self, value: Body) -> None:
        path = value["uds_path"]
        if self.vsock_listener is not None:  # replacing the device is the one case where it unlinks
            self.loop.selector.unregister(self.vsock_listener)
            self.vsock_listener.close()
            self.vsock_listener = None
            if self.vsock is not None:
                Path(self.vsock["uds_path"]).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(path)
        except OSError as error:
            listener.close()
            raise Refusal(
                "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side"
                f" Unix socket: {error.strerror} (os error {error.errno})"
            ) from None
        listener.listen(64)
        listener.setblocking(False)
        self.vsock, self.vsock_listener = value, listener
        self.loop.selector.register(listener, selectors.EVENT_READ, self.accept_vsock)

    def accept_vsock(self, _: int) -> None:
        assert self.vsock_listener is not None
        if self.state == "Running" and self.guest.serving:
            self.guest.accept(self.vsock_listener.accept()[0])
        else:
            # left in the backlog, as the real one does; looked at again when things may have changed
            listener = self.vsock_listener
            self.loop.selector.unregister(listener)
            self.loop.later(
                0.01,
                lambda: (
                    self.loop.selector.register(listener, selectors.EVENT_READ, self.accept_vsock) and None
                ),
            )

    def put_metrics(self, value: Body) -> None:
        if self.metrics_fd >= 0:
            raise Refusal(
                "Metrics error: Cannot initialize the metrics system due to bad user input: Reinitialization"
                " of metrics not allowed."
            )
        flags = os.O_CREAT | os.O_RDWR | os.O_NONBLOCK  # neither O_APPEND nor O_TRUNC
        failed = "Metrics error: Cannot initialize the metrics system due to bad user input: {}"
        self.metrics_fd = _openable(value["metrics_path"], flags, failed, keep=True)

    def put_entropy(self, value: Body) -> None:
        self.entropy = value

    def put_serial(self, value: Body) -> None:
        self.serial_path = value.get("serial_out_path") or ""

    def hold(self, name: str, fd: int) -> None:
        old = self.held.pop(name, -1)
        if old >= 0:
            os.close(old)
        if fd >= 0:
            self.held[name] = fd


def _demand(condition: bool, fault: str) -> None:
    if not condition:
        raise Refusal(fault)


def _openable(path: str, flags: int, failed: str, *, keep: bool = False) -> int:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Refusal(failed.format(f"{error.strerror} (os error {error.errno})")) from None
    if not keep:
        os.close(fd)
    return fd


def _response(status: int, body: bytes, *, last: bool = False) -> bytes:
    connection = "close" if last else "keep-alive"
    gap = "" if last else " "  # the real one's own unevenness
    head = f"HTTP/1.1 {status}{gap}\r\nServer: Firecracker API\r\nConnection: {connection}\r\n"
    if body:
        if not last:
            head += "Content-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def parse_options(argv: list[str]) -> dict[str, str]:
    """Raises ValueError with the offending argument."""
    options: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if word in OPTIONS:
            options[word] = next(words, "")
        elif word not in SWITCHES:
            raise ValueError(word.lstrip("-"))
    return options


def main(api_path: str, plan_path: str) -> None:
    plan_path = os.environ.get("FAKE_FC_PLAN", plan_path)
    plan: Body = json.loads(Path(plan_path).read_bytes()) if Path(plan_path).exists() else {}
    if "--version" in sys.argv:
        print(f"Firecracker v{plan.get('version', '1.16.2')}\n")
        return
    try:
        options = parse_options(sys.argv[1:])
    except ValueError as error:
        print(f"Arguments parsing error: Found argument '{error}' which wasn't expected, or isn't valid")
        sys.exit(153)
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", options.get("--id", "x")):
        print("Firecracker panicked at: Invalid instance ID")
        sys.stdout.flush()
        os.abort()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    schema = Schema(json.loads(Path(api_path).read_bytes()))
    FakeFirecracker(options, schema=schema, plan=plan).run()
