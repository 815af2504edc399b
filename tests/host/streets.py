"""Network namespaces around the test's own: guests on a bridge, and "the internet" behind an uplink.

A guest is a namespace whose end of a veth pair plays its tap: to the firewall a port of the bridge is one.
Sockets are made in a namespace by a thread that enters it, and used from anywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from banger.helper import marks
from banger.network.addresses import mac_of

BRIDGE = "br-t"
BRIDGE_IP = "10.9.0.1"
UPLINK_IP, SERVER_IP = "198.51.100.1", "198.51.100.2"
CLONE_NEWNET = 0x40000000
TIMEOUT_S = 10.0
SILENCE_S = 0.15
ETH_P_ALL = 3
T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], check=True, timeout=30, capture_output=True, text=True)
    return done.stdout


@dataclass(frozen=True)
class Place:
    """A namespace with one link, eth0."""

    netns: str
    address: str
    mac: str
    tap: str = ""

    def run(self, work: Callable[[], T]) -> T:
        """In a thread that is in the namespace."""
        outcome: list[T] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                handle = os.open(f"/run/netns/{self.netns}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _libc.setns(handle, CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                finally:
                    os.close(handle)
                outcome.append(work())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def open(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        return self.run(lambda: quick(socket.AF_INET, kind))

    def raw(self) -> socket.socket:
        """Sends and sees whole frames."""

        def make() -> socket.socket:
            made = quick(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            made.bind(("eth0", 0))
            return made

        return self.run(make)

    def ip(self, *words: str) -> str:
        return ip("-n", self.netns, *words)


def answers_ping(who: Place, address: str, *, wait_s: int = 20) -> bool:
    argv = ["ip", "netns", "exec", who.netns, "ping", "-nqc1", f"-W{wait_s}", address]
    return subprocess.run(argv, check=False, stdout=subprocess.DEVNULL, timeout=30).returncode == 0


def bridge(*words: str) -> str:
    done = subprocess.run(["bridge", *words], check=True, timeout=30, capture_output=True, text=True)
    return done.stdout


def quick(family: int, kind: int, protocol: int = 0) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    made.settimeout(TIMEOUT_S)
    return made


def packets_on(link: str) -> socket.socket:
    """Frames that this namespace sees on a link of its own."""
    made = quick(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    made.bind((link, 0))
    return made


@contextlib.contextmanager
def place(address: str, *, mac: str, tap: str, gateway: str) -> Iterator[Place]:
    """The namespace, and in this one the other end of its wire, named `tap`, down."""
    name = f"banger-test-{secrets.token_hex(4)}"
    ip("netns", "add", name)
    try:
        ip("link", "add", tap, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", name)
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", "eth0", "addrgenmode", "none", "up")
        ip("link", "set", tap, "addrgenmode", "none")
        ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        if gateway:
            ip("-n", name, "route", "add", "default", "via", gateway)
        try:
            yield Place(name, address, mac, tap)
        finally:
            ip("link", "delete", tap)
    finally:
        ip("netns", "delete", name)


@contextlib.contextmanager
def guest(number: int, instance: str, *, bridge: str = BRIDGE) -> Iterator[Place]:
    """On a bridge, which is there; its tap is in the instance's group."""
    address = f"10.9.0.{number}"
    with place(address, mac=mac_of(address), tap=f"tap-fc-{number}", gateway=BRIDGE_IP) as made:
        ip("link", "set", made.tap, "group", str(marks.link_group(instance)), "master", bridge, "up")
        yield made


@contextlib.contextmanager
def internet() -> Iterator[Place]:
    """It knows no way to the bridge's network: what comes from there must have the uplink's address."""
    with place(SERVER_IP, mac="06:02:00:00:00:02", tap="uplink", gateway="") as made:
        ip("address", "add", f"{UPLINK_IP}/24", "dev", "uplink")
        ip("link", "set", "uplink", "up")
        yield made


@contextlib.contextmanager
def listener(where: Place | None, address: str, port: int, *, udp: bool = False) -> Iterator[socket.socket]:
    """In a namespace, or in this one."""
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    made = where.open(kind) if where else quick(socket.AF_INET, kind)
    with made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        if not udp:
            made.listen()
        yield made


def reaches(who: Place, address: str, port: int) -> bool:
    """Whether a TCP connection comes about. A refusal by the firewall is heard at once."""
    with who.open() as made:
        try:
            made.connect((address, port))
        except (ConnectionRefusedError, TimeoutError):
            raise AssertionError(f"{address}:{port} neither answers nor is forbidden") from None
        except OSError:
            return False
        return True


def asks(who: Place, server: socket.socket, *, address: str, port: int, within_s: float = TIMEOUT_S) -> bool:
    """Whether a datagram arrives, and its answer."""
    with who.open(socket.SOCK_DGRAM) as made:
        made.connect((address, port))
        made.send(b"hello")
        if not arrives(server, b"hello", within_s=within_s):
            return False
        made_from = made.getsockname()
        server.sendto(b"answer", made_from)
        return made.recv(64) == b"answer"


def arrives(server: socket.socket, what: bytes, *, within_s: float = TIMEOUT_S) -> bool:
    """What is to come is waited for long: this machine may be busy."""
    server.settimeout(within_s)
    try:
        while True:
            if what in server.recv(65536):
                return True
    except TimeoutError:
        return False
    finally:
        server.settimeout(TIMEOUT_S)


def stays_away(server: socket.socket, what: bytes) -> bool:
    """What is not to come is not waited for long."""
    return not arrives(server, what, within_s=SILENCE_S)


def ethernet(destination: str, source: str, kind: int, *, payload: bytes = b"") -> bytes:
    address = [bytes.fromhex(mac.replace(":", "")) for mac in (destination, source)]
    return (b"".join(address) + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def ipv4(source: str, destination: str, payload: bytes) -> bytes:
    """A UDP datagram to port 53; checksums as they should be."""
    udp = struct.pack("!HHHH", 1000, 53, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:] + udp


def arp(operation: int, *, mac: str, address: str, target: str) -> bytes:
    return (
        struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        + bytes.fromhex(mac.replace(":", ""))
        + socket.inet_aton(address)
        + bytes(6)
        + socket.inet_aton(target)
    )
