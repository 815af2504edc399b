"""Leases on VMs with auto_remove (`vm run --rm`), and what happens when the last one ends.

A VM with auto_remove lives as long as somebody holds a lease on it, or watches the operation that makes
it. Left alone for the grace it is deleted. Nothing is durable but the VM's own auto_remove: a new daemon
gives every such VM the same grace for its CLI to come back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from banger.daemon.contracts import VMs
from banger.daemon.operations import Operations
from banger.model.records import VMRecord

log = logging.getLogger(__name__)

START_GRACE_S = 10.0
"""After the daemon's start: for a CLI to see that its lease is gone and to take it again."""
GRACE_S = 3.0
"""After a lease ended. SPEC: deleted within 10 s, the deletion itself included."""
ROUND_S = 0.5
RETRY_S = 60.0
"""After a deletion that did not do: whatever was in its way gets time to go."""

DeleteVM = Callable[[VMRecord], None]
"""Starts an operation that deletes this VM."""


class LeaseKeeper:
    """Runs as one background task of the daemon; sleeps for good while nothing is auto_remove."""

    def __init__(
        self,
        vms: VMs,
        operations: Operations,
        *,
        delete: DeleteVM,
        grace_s: float = GRACE_S,
        start_grace_s: float = START_GRACE_S,
    ) -> None:
        self._vms = vms
        self._operations = operations
        self._delete = delete
        self._grace_s = grace_s
        self._returning_until = time.monotonic() + max(0.0, start_grace_s - grace_s)
        self._returning = {record.id for record in vms.list() if record.auto_remove}
        self._held: Counter[str] = Counter()
        self._alone_since: dict[str, float] = {}
        self._retry_at: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._wake.set()

    @contextmanager
    def lease(self, vm_id: str) -> Iterator[None]:
        """Held for as long as the context is."""
        self._held[vm_id] += 1
        try:
            yield
        finally:
            self._held[vm_id] -= 1
            if not self._held[vm_id]:
                del self._held[vm_id]
            self._wake.set()

    def wake(self) -> None:
        """Something with auto_remove is being made."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled. One round's failure is logged and the rounds go on."""
        while True:
            await self._wake.wait()
            try:
                busy = self._round(time.monotonic())
            except Exception:
                log.exception("the lease round failed")
                busy = True
            if not busy:
                self._wake.clear()
                continue
            await asyncio.sleep(ROUND_S)

    def _from(self, vm_id: str, moment: float) -> float:
        """When the grace begins: later for what an earlier daemon left, so that its CLI can come back."""
        return max(moment, self._returning_until) if vm_id in self._returning else moment

    def _round(self, moment: float) -> bool:
        """Delete what has been alone too long; True while there is something to watch."""
        running = self._operations.running()
        making = [operation for operation in running if operation.auto_remove]
        attended = {operation.vm_id for operation in making if operation.watchers}
        going = {operation.vm_id for operation in running if operation.kind == "vm.delete"}
        removable = [record for record in self._vms.list() if record.auto_remove]
        alone: dict[str, float] = {}
        for operation in making:
            if not operation.watchers and not operation.vm_id:
                key = f"operation {operation.id}"
                alone[key] = since = self._alone_since.get(key, moment)
                if moment - since > self._grace_s:
                    log.warning("nobody waits for the VM with auto_remove that is being made: cancelled")
                    self._operations.cancel(operation.id)
        nameless = any(operation.watchers and not operation.vm_id for operation in making)
        for record in removable:
            if record.id in attended or record.id in going or self._held[record.id]:
                continue
            if nameless and record.id not in self._alone_since and record.state in ("created", "starting"):
                continue  # probably the one whose operation has not yet said its id
            alone[record.id] = since = self._alone_since.get(record.id, self._from(record.id, moment))
            if moment - since > self._grace_s and moment >= self._retry_at.get(record.id, 0.0):
                self._retry_at[record.id] = moment + RETRY_S
                log.info("VM %s (%s) has auto_remove and no lease: deleting it", record.name, record.id[:12])
                self._delete(record)
        self._alone_since = alone
        present = {record.id for record in removable}
        self._retry_at = {vm_id: at for vm_id, at in self._retry_at.items() if vm_id in present}
        return bool(removable or making)
