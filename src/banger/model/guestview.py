"""What a guest says of itself when asked: who listens in it, and how it is. Answered, never stored.

Made by vm/guestview.py, which has checked and bounded every word of it; on the wire as it is.
"""

from __future__ import annotations

import msgspec


class GuestPort(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A listening socket in the guest.

    endpoint and url are there only where it can be reached from the host: `<name>.vm:port`, and a link
    where it was asked just now and speaks http or https.
    """

    protocol: str  # tcp or udp
    address: str  # in the guest; 0.0.0.0 and :: are all of its addresses
    port: int
    uid: int
    pid: int = 0
    process: str = ""
    endpoint: str = ""
    url: str = ""


class PublishedState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A published port as it is now. problem: why nobody listens, of a VM that runs."""

    host_address: str
    host_port: int
    guest_port: int
    listening: bool = False
    problem: str = ""


class VMPorts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """By port. left_out: how many more listeners there are. published: what leads there from the host."""

    vm_id: str
    name: str
    ports: tuple[GuestPort, ...]
    left_out: int = 0
    published: tuple[PublishedState, ...] = ()


class GuestFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A living guest's own figures, asked for just now. work_*: absent without a work disk."""

    uptime_s: int
    load1: float
    memory_total_kib: int
    memory_available_kib: int
    root_total_bytes: int
    root_free_bytes: int
    work_total_bytes: int | None = None
    work_free_bytes: int | None = None
