"""The VMs' host keys in banger's known_hosts, from a VM's first start to its deletion.

The file itself is guest/known_hosts.py's. A line that could not be taken out, or that a crash left, names a
VM that is no more: it is harmless, never stops a deletion, and goes at the daemon's next start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from banger.config.paths import Paths
from banger.errors import BangerError
from banger.guest import known_hosts
from banger.guest.known_hosts import KnownHost
from banger.guest.ssh import KeyPair, read_host_key
from banger.model.records import VMRecord

log = logging.getLogger(__name__)


async def remember_host(paths: Paths, record: VMRecord, key: KeyPair) -> None:
    """Before the machine starts, so that the first contact is checked too. Raises OSError."""
    await asyncio.to_thread(known_hosts.remember, paths.known_hosts, _known(record, key.public_key))


async def forget_host(paths: Paths, vm_id: str) -> None:
    try:
        await asyncio.to_thread(known_hosts.forget, paths.known_hosts, vm_id)
    except (BangerError, OSError) as error:
        log.warning("%s: the host key of %s stays in it: %s", paths.known_hosts, vm_id[:12], error)


async def restore_hosts(paths: Paths, records: Sequence[VMRecord]) -> None:
    """Daemon start: these VMs, and no others."""
    hosts = [_known(record, read_host_key(record.runtime.vm_dir)) for record in records]
    try:
        await asyncio.to_thread(known_hosts.restore, paths.known_hosts, hosts)
    except (BangerError, OSError) as error:
        log.warning("%s cannot be brought up to date: %s", paths.known_hosts, error)


def _known(record: VMRecord, public_key: str) -> KnownHost:
    return KnownHost(record.id, record.name, record.runtime.guest_ip, public_key)
