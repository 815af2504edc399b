"""What the helper takes as an argument. Pure; root's helper trusts no one, the daemon included."""

from __future__ import annotations

import ipaddress
import os
import re

from banger.helper.errors import Refused
from banger.helper.interface import FirewallRules
from banger.model.netwhy import Flow, Protocol

_LINK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_MAC = re.compile(r"06:00(:[0-9a-f]{2}){4}")
_MOST_GUESTS = 1 << 16
_MOST_ROUTES = 64
_MOST_BRIDGES = 256
_TAP = re.compile(r"tap-(fc|pool)-[0-9a-z]{1,8}")
_DM = re.compile(r"fc-rootfs-[0-9a-f]{8,16}(-base)?")
_LOOP = re.compile(r"/dev/loop[0-9]{1,6}")
_VM_ID = re.compile(r"[0-9a-f]{64}")
_DOMAIN = re.compile(r"[a-z][a-z0-9-]{0,62}")
_ROLE = re.compile(r"[a-z]{1,16}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
MONITOR_PROGRAMS = frozenset(
    {"firecracker", "jailer", "qemu-system-x86_64", "qemu-system-aarch64", "vhost-device-vsock"}
)
"""Basenames of the programs that may be launched. Tests add the fake's."""


def bridge_name(name: str) -> str:
    if not _LINK.fullmatch(name) or name in ("lo",):
        raise Refused(f"{name!a} is no name for a bridge")
    return name


def tap_name(name: str) -> str:
    if not _TAP.fullmatch(name):
        raise Refused(f"{name!a} is no name of a tap of banger's")
    return name


def dm_name(name: str) -> str:
    if not _DM.fullmatch(name):
        raise Refused(f"{name!a} is no name of a root disk of banger's")
    return name


def loop_device(path: str) -> str:
    if not _LOOP.fullmatch(path):
        raise Refused(f"{path!a} is no loop device")
    return path


def vm_id(identifier: str, *, optional: bool = False) -> str:
    if not (optional and identifier == "") and not _VM_ID.fullmatch(identifier):
        raise Refused(f"{identifier[:80]!a} is no VM id")
    return identifier


def name_server(text: str) -> str:
    """IPv4, or IPv4:port."""
    host, colon, port = text.partition(":")
    try:
        ipaddress.IPv4Address(host)
        if colon and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise ValueError(port)
    except ValueError:
        raise Refused(f"{text[:80]!a} is no name server") from None
    return text


def routes(networks: tuple[str, ...]) -> tuple[ipaddress.IPv4Network, ...]:
    if len(networks) > _MOST_ROUTES:
        raise Refused(f"{len(networks)} routes are more than {_MOST_ROUTES}")
    try:
        return tuple(ipaddress.IPv4Network(network) for network in networks)
    except ValueError as error:
        raise Refused(f"a route: {str(error)[:120]!a}") from None


def domain(name: str) -> str:
    if not _DOMAIN.fullmatch(name):
        raise Refused(f"{name[:80]!a} is no domain")
    return name


def address(text: str, prefix: int) -> ipaddress.IPv4Interface:
    if not 8 <= prefix <= 30 and prefix != 32:
        raise Refused(f"a prefix of {prefix} is not between 8 and 30, nor 32")
    try:
        return ipaddress.IPv4Interface(f"{text}/{prefix}")
    except ValueError:
        raise Refused(f"{text!a}/{prefix} is no IPv4 address") from None


def firewall(rules: FirewallRules) -> FirewallRules:
    """Everything that becomes a word of the ruleset; no tap, MAC or address twice."""
    for bridge in (rules.bridge, *rules.further):
        bridge_name(bridge)
    if len(rules.further) > _MOST_BRIDGES:
        raise Refused(f"{len(rules.further)} bridges are more than {_MOST_BRIDGES}")
    plain_address(rules.address)
    if len(rules.guests) > _MOST_GUESTS:
        raise Refused(f"{len(rules.guests)} guests are more than {_MOST_GUESTS}")
    for port in rules.host_access:
        if not 1 <= port <= 65535:
            raise Refused(f"{port} is no port")
    for guest in rules.guests:
        tap_name(guest.tap)
        plain_address(guest.address)
        if not _MAC.fullmatch(guest.mac):
            raise Refused(f"{guest.mac[:40]!a} is no MAC of a guest")
    for what, values in (
        ("tap", [guest.tap for guest in rules.guests]),
        ("MAC", [guest.mac for guest in rules.guests]),
        ("address", [rules.address, *(guest.address for guest in rules.guests)]),
    ):
        if len(set(values)) < len(values):
            raise Refused(f"two guests have the same {what}")
    return rules


def plain_address(text: str) -> str:
    """An IPv4 address as it is usually written, and nothing else."""
    try:
        if str(ipaddress.IPv4Address(text)) == text:
            return text
    except ValueError:
        pass
    raise Refused(f"{text[:80]!a} is no IPv4 address")


def flow(asked: Flow) -> Flow:
    """Everything that becomes a word of a trace's tables."""
    tap_name(asked.tap)
    plain_address(asked.guest)
    plain_address(asked.gateway)
    plain_address(asked.target)
    lowest = 0 if asked.protocol is Protocol.ICMP else 1
    if not lowest <= asked.port <= 65535 or not 1 <= asked.source <= 65535:
        raise Refused(f"{asked.source} to {asked.port} are no ports")
    return asked


def role(text: str) -> str:
    if not _ROLE.fullmatch(text):
        raise Refused(f"{text!a} is no role of a process")
    return text


def file_name(text: str) -> str:
    """A file in the VM's folder, by its bare name."""
    if not _FILE.fullmatch(text):
        raise Refused(f"{text!a} is no file of a VM's folder")
    return text


def below(path: str, *folders: str) -> str:
    """An absolute path without `..` below one of the folders."""
    if not os.path.isabs(path) or os.path.normpath(path) != path:
        raise Refused(f"{path!a} is no plain absolute path")
    if not any(path.startswith(f"{folder}/") for folder in folders):
        raise Refused(f"{path!a} is not in a folder of this instance")
    return path


def program(path: str, *, allowed: frozenset[str]) -> str:
    if os.path.basename(path) not in allowed:
        raise Refused(f"{path!a} is no machine monitor")
    return path
