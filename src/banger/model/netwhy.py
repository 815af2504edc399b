"""Facts about one packet's way from a guest, and the explanation that `net why` makes of them.

Facts are gathered by guest/probe.py (in the guest), helper/ (the kernel's trace) and vm/netwhy.py;
network/why.py turns them into stages. What a guest says in them has been bounded and made printable.
Nothing is stored.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """One guest's packets to one place. source: its port, of ICMP the echo's id. port: 0 for ICMP.
    gateway: whom the guest asks for by ARP on the way."""

    tap: str
    guest: str
    gateway: str
    target: str
    protocol: Protocol
    port: int
    source: int


class TraceEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the kernel says of a packet in one chain: the verdict of a rule (handle and text), or of the
    chain's policy (handle 0). Addresses are the packet's there, of ARP who asks for whom; ports likewise, of
    an echo both its id. packet: events of one packet share it, as long as the host does not hand it on."""

    family: str  # inet ip ip6 arp bridge netdev
    table: str
    chain: str
    verdict: str  # accept drop continue jump goto return queue
    handle: int = 0
    rule: str = ""
    source: str = ""
    target: str = ""
    protocol: int = 0  # IP's number; 0 for ARP
    source_port: int = 0
    target_port: int = 0
    packet: str = ""
    iif: str = ""
    oif: str = ""


class GuestLink(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    up: bool
    running: bool  # it has a carrier
    address: str = ""
    netmask: str = ""


class GuestRoute(msgspec.Struct, frozen=True, kw_only=True):
    link: str
    network: str  # IPv4 CIDR
    gateway: str = ""  # "" for what is on the link
    metric: int = 0


class GuestNetwork(msgspec.Struct, frozen=True, kw_only=True):
    links: tuple[GuestLink, ...] = ()
    routes: tuple[GuestRoute, ...] = ()
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    hosts: dict[str, str] = {}  # IPv4 by name, in small letters


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Of an attempt from inside the guest. error: the errno's name, "" where it connected or was answered."""

    error: str = ""
    milliseconds: float = 0.0
    answer: bytes = b""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt with what the kernel showed of it. trace None: it could not be traced (untraced: why)."""

    flow: Flow
    outcome: Outcome
    trace: tuple[TraceEvent, ...] | None = ()
    untraced: str = ""


class NameAsked(msgspec.Struct, frozen=True, kw_only=True):
    """One question to a resolver that the guest's resolv.conf names. rcode: DNS's, -1 for no answer."""

    name: str
    server: str
    probe: Probe
    rcode: int = -1
    addresses: tuple[str, ...] = ()


class HostLink(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    up: bool
    carrier: bool
    master: str = ""
    addresses: tuple[str, ...] = ()
    virtual: bool = False  # a bridge, a tap or the loopback


class HostRoute(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel's own answer for the way to the target. error: the errno's name where there is none."""

    link: str = ""
    gateway: str = ""
    local: bool = False
    error: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `explain` looks at. target "": the name has not been resolved."""

    vm: str
    nat: bool
    bridge: str
    bridge_ip: str
    network: str  # the bridge's, CIDR
    guest_ip: str
    tap: str
    host: str  # as it was asked for
    target: str = ""
    protocol: Protocol = Protocol.ICMP
    port: int = 0
    guest: GuestNetwork | None = None
    asked: tuple[NameAsked, ...] = ()
    by_hosts: bool = False  # the name was in the guest's /etc/hosts
    probe: Probe | None = None
    links: tuple[HostLink, ...] = ()
    forwarding: bool = True
    route: HostRoute | None = None
    nobody: bool = False  # the target is of the bridge's network, and no VM that runs has it
    names_problem: str = ""  # why the instance's own name server does not serve


class Mark(StrEnum):
    OK = "ok"
    STOP = "stops here"
    NOT_REACHED = "not reached"
    SKIPPED = "not needed"


class Cause(StrEnum):
    """What stops it; part of the API. NONE: nothing does."""

    NONE = "none"
    GUEST_LINK = "guest_link"
    GUEST_ROUTE = "guest_route"
    NAME_NOT_FOUND = "name_not_found"
    NO_DNS_ANSWER = "no_dns_answer"
    WRONG_RESOLVER = "wrong_resolver"
    TAP = "tap"
    BRIDGE = "bridge"
    SPOOFED = "spoofed"
    NO_NAT = "no_nat"
    ISOLATED = "isolated"
    NOT_FOR_GUESTS = "not_for_guests"
    FIREWALL = "firewall"
    FIREWALL_UNSEEN = "firewall_unseen"
    FORWARDING_OFF = "forwarding_off"
    NO_MASQUERADE = "no_masquerade"
    NO_ROUTE = "no_route"
    UPLINK_DOWN = "uplink_down"
    NOT_LISTENING = "not_listening"
    REJECTED = "rejected"
    NO_ANSWER = "no_answer"
    UNKNOWN = "unknown"


class NetStage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A place on the way. name: guest link, guest route, name, tap, bridge, firewall, forwarding, host route,
    uplink, answer. words: what was seen there."""

    name: str
    mark: Mark
    words: str = ""


class NetRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The rule that decided, as `nft` shows it; a chain's policy has handle 0."""

    family: str
    table: str
    chain: str
    verdict: str
    handle: int = 0
    rule: str = ""


class NetWhy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer of `net why`. sentence: what stops it, or how it got through. remedy: what to do, or ""."""

    vm_id: str
    name: str
    host: str
    protocol: Protocol
    through: bool
    cause: Cause
    sentence: str
    stages: tuple[NetStage, ...]
    address: str = ""
    port: int = 0
    remedy: str = ""
    rule: NetRule | None = None
    milliseconds: float = 0.0
