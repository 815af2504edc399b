"""The zone `.vm` and the guests' reverse names: what is answered with authority, and to whom the rest goes.

Owns the table of running guests, which is memory only: after a crash it is filled again from what runs. A
name is known to all; which of them can be reached is the firewall's matter. Pure but for the table.
"""

from __future__ import annotations

import ipaddress
from enum import Enum
from typing import NamedTuple

from banger.network.addresses import bridge_network
from banger.network.dnspacket import (
    ANY_CLASS,
    IN,
    TYPE_A,
    TYPE_ANY,
    TYPE_PTR,
    Query,
    RCode,
    Record,
    reply,
)

DOMAIN = "vm"
TTL_S = 5
ABSENT_TTL_S = 1
"""How long a "no such name" may be kept: the guest may be running the next second."""
_REVERSE = (b"in-addr", b"arpa")
_SERIALS = 1 << 31


class NamedGuest(NamedTuple):
    """A guest that runs. nat: it may ask for names outside."""

    name: str
    address: str
    nat: bool


class Verdict(Enum):
    """What is not answered here."""

    FORWARD = "forward"


class Zone:
    def __init__(self, bridge_ip: str, prefix: int) -> None:
        self._network = bridge_network(bridge_ip, prefix)
        self._guests: dict[str, NamedGuest] = {}
        self._names: dict[bytes, NamedGuest] = {}
        self._addresses: dict[str, NamedGuest] = {}
        self._serial = 1

    def put(self, vm_id: str, guest: NamedGuest) -> None:
        if self._guests.get(vm_id) == guest:
            return
        self.remove(vm_id)
        self._guests[vm_id] = guest
        self._names[guest.name.encode()] = guest
        self._addresses[guest.address] = guest
        self._serial = self._serial % _SERIALS + 1

    def remove(self, vm_id: str) -> None:
        """Idempotent."""
        guest = self._guests.pop(vm_id, None)
        if guest is not None:
            if self._names.get(guest.name.encode()) == guest:
                del self._names[guest.name.encode()]
            if self._addresses.get(guest.address) == guest:
                del self._addresses[guest.address]
            self._serial = self._serial % _SERIALS + 1

    def get(self, vm_id: str) -> NamedGuest | None:
        return self._guests.get(vm_id)

    def guests(self) -> tuple[NamedGuest, ...]:
        return tuple(self._guests.values())

    def answer(self, query: Query, *, source: str = "", for_guests: bool = False) -> bytes | Verdict:
        """The reply, or FORWARD. source: who asks, an address that can be trusted where for_guests."""
        guest = self._addresses.get(source) if for_guests else None
        recursion = guest is not None and guest.nat
        if query.fault:
            return reply(query, query.fault)
        if query.klass not in (IN, ANY_CLASS):
            return reply(query, RCode.REFUSED)
        if query.labels[-1:] == (DOMAIN.encode(),):
            return self._forward_name(query, recursion_available=recursion)
        address = reversed_address(query.labels)
        if address is not None and address in self._network:
            return self._reverse_name(query, str(address), recursion_available=recursion)
        return Verdict.FORWARD if recursion else reply(query, RCode.REFUSED)

    def _forward_name(self, query: Query, *, recursion_available: bool) -> bytes:
        guest = self._names.get(query.labels[0]) if len(query.labels) == 2 else None
        exists = guest is not None or len(query.labels) == 1
        answers: tuple[Record, ...] = ()
        if guest is not None and query.type in (TYPE_A, TYPE_ANY):
            answers = (Record(TYPE_A, guest.address, TTL_S),)
        return self._authoritative(
            query, DOMAIN, exists=exists, answers=answers, recursion_available=recursion_available
        )

    def _reverse_name(self, query: Query, address: str, *, recursion_available: bool) -> bytes:
        guest = self._addresses.get(address)
        answers: tuple[Record, ...] = ()
        if guest is not None and query.type in (TYPE_PTR, TYPE_ANY):
            answers = (Record(TYPE_PTR, f"{guest.name}.{DOMAIN}", TTL_S),)
        zone = ".".join(part.decode("ascii") for part in query.labels[1:])
        return self._authoritative(
            query, zone, exists=guest is not None, answers=answers, recursion_available=recursion_available
        )

    def _authoritative(
        self, query: Query, zone: str, *, exists: bool, answers: tuple[Record, ...], recursion_available: bool
    ) -> bytes:
        return reply(
            query,
            RCode.NOERROR if exists else RCode.NXDOMAIN,
            answers=answers,
            start_of_authority=None if answers else (zone, self._serial, ABSENT_TTL_S),
            authoritative=True,
            recursion_available=recursion_available,
        )


def reversed_address(labels: tuple[bytes, ...]) -> ipaddress.IPv4Address | None:
    """4.3.2.1.in-addr.arpa → 1.2.3.4; None for anything else, leading zeros included."""
    if len(labels) != 6 or labels[4:] != _REVERSE:
        return None
    try:
        return ipaddress.IPv4Address(b".".join(reversed(labels[:4])).decode("ascii"))
    except ValueError:
        return None
