"""Which bridge a guest is on: pure arithmetic over its address.

A bridge of the kernel's takes 1,023 ports (BR_MAX_PORTS, 1 << 10, less the number 0), so that the guests'
network is cut into blocks, each on a bridge of its own: `br-fc`, `br-fc-1`, … All have the gateway's address;
the first has it with the network's prefix, a further one alone (/32), with routes to its block. So a guest's
own configuration is the same on each, and nothing has to be remembered: not which bridge a VM is on, nor a
route per VM. Addresses are given from the lowest on: with less than a thousand VMs there is one bridge.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import msgspec

from banger.config.settings import Settings
from banger.network.addresses import address_number, bridge_network

PORTS = 1023
GUESTS_PER_BRIDGE = 1000
"""The other ports are for what is no guest's (yet): idle taps of the pool, a tap on its way out."""

_MOST_NAME = 15
_FURTHER = re.compile(r".+-([1-9][0-9]{0,4})")


class Bridges(msgspec.Struct, frozen=True, kw_only=True):
    """Of one instance. name and address: the first bridge's; guests: addresses of a block."""

    name: str
    address: str
    prefix: int
    guests: int = GUESTS_PER_BRIDGE

    def of(self, guest: str) -> str:
        """The name of the bridge that this address belongs on. "" is nobody's, and on the first."""
        return self._named(self._block(guest))

    def further(self, guests: Iterable[str]) -> tuple[str, ...]:
        """The bridges beside the first that these addresses need, in their order."""
        blocks = {self._block(guest) for guest in guests}
        return tuple(self._named(block) for block in sorted(blocks - {0}))

    def own(self, link: str) -> bool:
        """Whether one of these bridges has this name."""
        found = _FURTHER.fullmatch(link)
        return link == self.name or (
            found is not None and int(found[1]) <= self._last() and link == self._named(int(found[1]))
        )

    def several(self) -> bool:
        """Whether the network has room for guests of a second one."""
        return self._last() > 0

    def idle(self, wanted: int) -> int:
        """How many idle taps, of those wanted, the first bridge has ports for when its block is full."""
        return min(wanted, PORTS - self.guests) if self.several() else wanted

    def prefix_of(self, bridge: str) -> int:
        """With which the bridge has the gateway's address."""
        return self.prefix if bridge == self.name else 32

    def routes(self, bridge: str) -> tuple[str, ...]:
        """The networks that a bridge's block is made of. () for the first: it has the whole network, and what
        others have is more specific."""
        if bridge == self.name:
            return ()
        block = int(bridge.rpartition("-")[2])
        network = bridge_network(self.address, self.prefix)
        first = int(network.network_address) + block * self.guests
        last = min(first + self.guests - 1, int(network.broadcast_address))
        parts = ipaddress.summarize_address_range(ipaddress.IPv4Address(first), ipaddress.IPv4Address(last))
        return tuple(str(part) for part in parts)

    def _block(self, guest: str) -> int:
        if not guest or not self.several():
            return 0
        number = address_number(guest) & ((1 << (32 - self.prefix)) - 1)
        return number // self.guests

    def _last(self) -> int:
        return ((1 << (32 - self.prefix)) - 1) // self.guests

    def _named(self, block: int) -> str:
        suffix = f"-{block}" if block else ""
        return self.name[: _MOST_NAME - len(suffix)] + suffix


def bridges_of(settings: Settings, *, guests: int = GUESTS_PER_BRIDGE) -> Bridges:
    return Bridges(name=settings.bridge_name, address=settings.bridge_ip, prefix=settings.cidr, guests=guests)
