"""Published ports in words: `[ADDRESS:]PORT:GUESTPORT`, as docker has it, read and printed.

Pure, and nothing but the standard library's socket is imported: CLI and daemon check with the same functions,
and the list of VMs prints with them. What is published is stored with the VM (records.PublishedPort).
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from banger.errors import BangerError, ErrorCode

LOOPBACK = "127.0.0.1"
ANY_FREE = 0
MOST_PUBLISHED = 64
"""Of one VM."""
_SHAPE = "[ADDRESS:]PORT:GUESTPORT, such as 8080:80 or 0.0.0.0:8080:80"
_WILDCARDS = ("0.0.0.0", "::")


class PortSpec(NamedTuple):
    """host_address: canonical IPv4 or IPv6. host_port ANY_FREE: one is chosen once, and kept."""

    host_address: str
    host_port: int
    guest_port: int


class Which(NamedTuple):
    """What `unpublish` means: None is any."""

    host_address: str | None
    host_port: int
    guest_port: int | None


def parse_published(text: str) -> PortSpec:
    """GUESTPORT, [PORT]:GUESTPORT or ADDRESS:[PORT]:GUESTPORT, `/tcp` behind it allowed. INVALID_ARGUMENT."""
    address, parts = _parts(text)
    if len(parts) > 2:
        raise _wrong(text, "too many parts")
    if address is not None and len(parts) == 1:  # which of the two it is would be a guess
        raise _wrong(text, "with an address both ports are needed")
    guest_port = _port(parts[-1], text, "guest port")
    host = parts[0] if len(parts) == 2 else ""
    host_port = _port(host, text, "port", zero=True) if host else ANY_FREE
    return PortSpec(LOOPBACK if address is None else address, host_port, guest_port)


def parse_which(text: str) -> Which:
    """For unpublish: [ADDRESS:]PORT[:GUESTPORT]; alone it is the port on the host. INVALID_ARGUMENT."""
    address, parts = _parts(text)
    if len(parts) > 2:
        raise _wrong(text, "too many parts")
    guest_port = _port(parts[1], text, "guest port") if len(parts) == 2 else None
    return Which(address, _port(parts[0], text, "port"), guest_port)


def check_published(spec: PortSpec) -> PortSpec:
    """A spec of the API's, with its address in canonical form. INVALID_ARGUMENT."""
    address = canonical_address(spec.host_address)
    if address is None:
        raise _invalid(f"publish: {spec.host_address[:60]!a} is not an IP address")
    if not 0 <= spec.host_port <= 65535:
        raise _invalid(f"publish: port {spec.host_port} is not between 0 and 65535")
    if not 1 <= spec.guest_port <= 65535:
        raise _invalid(f"publish: guest port {spec.guest_port} is not between 1 and 65535")
    return PortSpec(address, spec.host_port, spec.guest_port)


def canonical_address(text: str) -> str | None:
    """None when it is no IP address."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, text))
        except (OSError, ValueError):  # ValueError: a NUL, or what is not ASCII
            continue
    return None


def overlap(one: PortSpec, other: PortSpec) -> bool:
    """Whether both would listen at one place."""
    if one.host_port != other.host_port or one.host_port == ANY_FREE:
        return False
    if one.host_address == other.host_address:
        return True
    same_family = (":" in one.host_address) == (":" in other.host_address)
    return same_family and (one.host_address in _WILDCARDS or other.host_address in _WILDCARDS)


def endpoint(address: str, port: int) -> str:
    """`127.0.0.1:8080`, `[::1]:8080`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def spec_text(spec: PortSpec) -> str:
    """As the command line takes it: `127.0.0.1:8080:80`."""
    return f"{endpoint(spec.host_address, spec.host_port)}:{spec.guest_port}"


def short_text(spec: PortSpec) -> str:
    """For a table: `8080->80` on the loopback, else with the address."""
    where = (
        str(spec.host_port) if spec.host_address == LOOPBACK else endpoint(spec.host_address, spec.host_port)
    )
    return f"{where}->{spec.guest_port}"


def matches(which: Which, spec: PortSpec) -> bool:
    return (
        which.host_port == spec.host_port
        and which.host_address in (None, spec.host_address)
        and which.guest_port in (None, spec.guest_port)
    )


def _parts(text: str) -> tuple[str | None, list[str]]:
    """(the address, if one is there; what follows it, split at its colons)."""
    spec, slash, protocol = text.strip().partition("/")
    if slash and protocol.lower() != "tcp":
        if protocol.lower() in ("udp", "sctp"):
            raise _invalid(f"publish: only TCP ports can be published, not {protocol.lower()}")
        raise _wrong(text, f"unknown protocol {protocol[:20]!a}")
    if not spec:
        raise _wrong(text, "nothing is there")
    if spec.startswith("["):
        inside, bracket, rest = spec[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise _wrong(text, "no port behind its address")
        return _address(inside, text, family=socket.AF_INET6), rest[1:].split(":")
    parts = spec.split(":")
    if len(parts) > 3:
        raise _invalid(
            f"publish: {text[:60]!a} has too many colons",
            hint="an IPv6 address stands in brackets: [::1]:8080:80",
        )
    if len(parts) == 3 or (len(parts) == 2 and "." in parts[0]):
        return _address(parts[0], text, family=socket.AF_INET), parts[1:]
    return None, parts


def _address(address: str, text: str, *, family: int) -> str:
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, address))
    except (OSError, ValueError):
        kind = "IPv6" if family == socket.AF_INET6 else "IPv4"
        raise _wrong(text, f"{address[:60]!a} is not an {kind} address") from None


def _port(digits: str, text: str, what: str, *, zero: bool = False) -> int:
    if not digits:
        raise _wrong(text, f"its {what} is missing")
    if "-" in digits:
        raise _invalid(
            f"publish: {text[:60]!a} has a range of ports", hint="give --publish once for each port"
        )
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5):
        raise _wrong(text, f"its {what} {digits[:20]!a} is not a number")
    number = int(digits)
    if not (0 if zero else 1) <= number <= 65535:
        raise _wrong(text, f"its {what} {number} is not between 1 and 65535")
    return number


def _wrong(text: str, why: str) -> BangerError:
    return _invalid(f"publish: {text[:60]!a}: {why}", hint=_SHAPE)


def _invalid(brief: str, *, hint: str | None = None) -> BangerError:
    return BangerError(ErrorCode.INVALID_ARGUMENT, brief, hint=hint)
