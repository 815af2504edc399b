"""The privileged operations: a fixed list, each validated by whoever executes it.

`Helper` is what the daemon's rooms call. helper/inprocess.py executes in the daemon's own process
when that is root. Every operation is idempotent: making what is there as wanted, or removing
what is not there, is no error. Everything made carries the mark of its instance and VM:
a link's alias `banger:<instance>:<vm id or "-">:<role>`. `instance` is 16 hex digits, kept in the state
folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from banger.model.netwhy import Flow, TraceEvent
from banger.model.records import ProcessIdentity


class ObservedLink(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    kind: str  # "bridge" | "tap"
    instance: str  # "" when not marked
    vm_id: str  # "" when of no VM (bridge, pool tap)
    master: str = ""  # the bridge it is a port of
    up: bool = False
    carrier: bool = False  # a process holds the tap open


class ObservedLoop(msgspec.Struct, frozen=True, kw_only=True):
    device: str  # /dev/loopN
    backing_file: str
    deleted: bool = False  # the backing file has no name any more
    vm_id: str = ""  # by its label; only its first 32 digits when no VM folder begins with them


class ObservedDm(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    uuid: str
    device: str  # /dev/dm-N


class ObservedProcess(msgspec.Struct, frozen=True, kw_only=True):
    identity: ProcessIdentity
    cwd: str
    argv: tuple[str, ...]


class GuestRule(msgspec.Struct, frozen=True, kw_only=True):
    """A guest as the firewall knows it: the one MAC and address that its tap may speak with."""

    tap: str
    mac: str
    address: str
    nat: bool = False


class FirewallRules(msgspec.Struct, frozen=True, kw_only=True):
    """All that the instance's nft tables are made from (helper/ruleset.py)."""

    bridge: str
    further: tuple[str, ...] = ()  # bridges with guests, beside the first
    address: str  # the bridges'
    isolated: bool = True  # guests from each other
    host_access: tuple[int, ...] = ()  # TCP and UDP ports of the bridge's address
    guests: tuple[GuestRule, ...] = ()
    forwarding_was_off: bool = False  # told to other instances by a mark in the table


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """Every object on the host that carries banger's marks or names, or lies in this instance's folders."""

    boot_id: str
    links: tuple[ObservedLink, ...] = ()
    loops: tuple[ObservedLoop, ...] = ()
    dms: tuple[ObservedDm, ...] = ()
    processes: tuple[ObservedProcess, ...] = ()
    mounts: tuple[str, ...] = ()
    nft_tables: tuple[str, ...] = ()  # "<family> <name>": this instance's, and those of no instance
    sockets: tuple[str, ...] = ()  # below vms_dir
    vm_dirs: tuple[str, ...] = ()  # names below vms_dir


class Helper(Protocol):
    async def ensure_bridge(
        self,
        name: str,
        *,
        address: str,
        prefix: int,
        routes: tuple[str, ...] = (),
        proxy_arp: bool = False,
    ) -> None:
        """The bridge, up, with exactly this IPv4 address. A link of that name without our mark: an error.

        prefix: 8 to 30; 32 for a further bridge of ours. routes: networks that are reached over it.
        proxy_arp: the host answers there for guests on other bridges of ours.
        """
        ...

    async def delete_bridge(self, name: str) -> None: ...

    async def create_tap(self, name: str, *, bridge: str, vm_id: str) -> None:
        """A persistent tap, port of the bridge, up, marked with vm_id ("" for a pool tap)."""
        ...

    async def mark_tap(self, name: str, *, vm_id: str) -> None: ...

    async def delete_tap(self, name: str) -> None: ...

    async def find_link(self, name: str) -> ObservedLink | None:
        """As list_links, the one of this name; what it costs does not grow with the links there are."""
        ...

    async def list_links(self) -> tuple[ObservedLink, ...]:
        """As in Observed.links, without the rest."""
        ...

    async def names_routable(self) -> bool:
        """Whether the host has a resolver that can be told whom to ask for a domain, and it serves."""
        ...

    async def route_names(self, link: str, *, server: str, domain: str) -> None:
        """The host asks `server` (IPv4, or IPv4:port) for names below `domain`, while our bridge is there."""
        ...

    async def names_routed(self, link: str, *, server: str, domain: str) -> bool:
        """Whether it still does."""
        ...

    async def unroute_names(self, link: str) -> None: ...

    async def apply_firewall(self, rules: FirewallRules) -> None:
        """This instance's tables, replaced as a whole in one transaction."""
        ...

    async def firewall_drift(self, rules: FirewallRules) -> str:
        """ "" where the tables are as apply_firewall(rules) makes them, else what is wrong with them."""
        ...

    async def remove_firewall(self) -> None: ...

    async def remove_nft_table(self, table: str) -> None:
        """A table of this instance's name, as Observed.nft_tables says it. NotOurs for any other name."""
        ...

    async def begin_trace(self, flow: Flow) -> str:
        """From now on the kernel shows what becomes of these packets and the answers to them. A token."""
        ...

    async def end_trace(self, token: str) -> tuple[TraceEvent, ...]:
        """What was shown, in its order; nothing of the trace is left. () of a token that is none."""
        ...

    async def forwarding(self) -> bool:
        """Whether the host forwards IPv4 packets (net.ipv4.ip_forward)."""
        ...

    async def set_forwarding(self, on: bool) -> None: ...

    async def others_need_forwarding(self) -> bool:
        """Whether another instance's table says that forwarding was off until a banger switched it on."""
        ...

    async def attach_loop(self, backing_file: str, *, read_only: bool, vm_id: str) -> str:
        """A loop device over a file of the instance's VMs or images, labelled with vm_id. Its path."""
        ...

    async def detach_loop(self, device: str, *, backing_file: str) -> None:
        """Detach if, and only if, it is still backed by that file."""
        ...

    async def create_snapshot_dm(
        self, name: str, *, uuid: str, base_loop: str, cow_loop: str, size_bytes: int
    ) -> str:
        """A writable device of size_bytes: the base, zeros behind it, and what was written in the store.
        uuid: `BANGER-<instance>-<vm id>`. Below it `<name>-base` is made with it, and removed with it."""
        ...

    async def remove_dm(self, name: str, *, uuid: str) -> None:
        """By uuid; retried while it is busy."""
        ...

    async def launch(
        self, argv: Sequence[str], *, role: str, vm_id: str, vm_dir: str, stdout: str
    ) -> ProcessIdentity: ...

    async def signal(self, identity: ProcessIdentity, signum: int) -> bool:
        """Through a pidfd, after the identity was checked. False when the process is gone."""
        ...

    async def wait_gone(self, identity: ProcessIdentity, *, timeout_s: float) -> bool: ...

    async def observe(self, *, vms_dir: str) -> Observed: ...
