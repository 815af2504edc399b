"""Published ports as a capability: bound on the host before the machine starts, carried while it runs.

What is published is intent and lives in the VM's spec; this owns what is true now: the listening sockets of
this daemon and why one could not be had. VMService calls it under the VM's lock. After a crash the kernel has
closed the sockets, and `seed` binds them again for the VMs that still run.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import socket
from collections.abc import Iterable, Sequence

import msgspec

from banger.api.requests import PublishPort, UnpublishPorts
from banger.errors import BangerError, ErrorCode
from banger.model.guestview import PublishedState
from banger.model.published import (
    ANY_FREE,
    MOST_PUBLISHED,
    PortSpec,
    Which,
    canonical_address,
    check_published,
    endpoint,
    matches,
    overlap,
    spec_text,
)
from banger.model.records import Image, ProcessIdentity, PublishedPort, VMRecord
from banger.store.vms import VMTable
from banger.system import tcplisten
from banger.vm.capabilities import Capability
from banger.vm.carrierprocess import CarrierProcess, Served
from banger.vm.planner import Finding
from banger.vm.subject import Subject

log = logging.getLogger(__name__)

FREE_PORTS = range(20_000, 32_768)
"""Where a free port is looked for: below those that the kernel gives to outgoing connections (ip(7)), so that
one which is kept for a VM's life is not taken by a passing one."""
TRIES = 64


class PortInUse(BangerError):
    """Somebody listens there. data: address, port, and vm (its name) where it is one of ours."""

    def __init__(self, spec: PortSpec, *, vm: str = "", who: str = "") -> None:
        where = endpoint(spec.host_address, spec.host_port)
        by = f" by the VM {vm}" if vm else f" by {who}" if who else ""
        hint = f"banger vm unpublish {vm} {where}, or another port" if vm else "choose another port"
        data = {"address": spec.host_address, "port": spec.host_port, **({"vm": vm} if vm else {})}
        super().__init__(ErrorCode.IN_USE, f"{where} is in use already{by}", hint=hint, data=data)


class Publishing(Capability):
    name = "ports"

    def __init__(self, table: VMTable, carrier: CarrierProcess) -> None:
        self._table = table
        self._carrier = carrier
        self._bound: dict[str, dict[PortSpec, socket.socket]] = {}
        """Of VMs that are about to run; from post_start on a socket is the carrier's."""
        self._served: dict[str, set[PortSpec]] = {}
        self._problems: dict[str, dict[PortSpec, str]] = {}

    # of a request

    async def choose(
        self, wanted: Iterable[PortSpec], *, published: Sequence[PublishedPort]
    ) -> list[PortSpec]:
        """What is wanted beside what the VM has published, each with a port of its own. Makes nothing.

        INVALID_ARGUMENT; ALREADY_EXISTS for a place that the VM publishes otherwise; IN_USE without a free
        port.
        """
        had = [spec_of(port) for port in published]
        chosen: list[PortSpec] = []
        for spec in map(check_published, wanted):
            if spec.host_port == ANY_FREE:
                spec = self._free(spec, [*had, *chosen])
            if spec in chosen:
                continue
            for other in (*had, *chosen):
                if other != spec and overlap(other, spec):
                    raise BangerError(
                        ErrorCode.ALREADY_EXISTS,
                        f"{spec_text(spec)}: {spec_text(other)} is published by the same VM",
                    )
            chosen.append(spec)
        if len({*had, *chosen}) > MOST_PUBLISHED:
            raise BangerError(ErrorCode.INVALID_ARGUMENT, f"a VM publishes {MOST_PUBLISHED} ports at most")
        return chosen

    async def try_out(self, specs: Iterable[PortSpec]) -> None:
        """Whether all could be listened on now. PortInUse, HOST_UNSUITABLE, PERMISSION_DENIED."""
        for listener in (await self._bind_all(list(specs))).values():
            tcplisten.shut(listener)

    # of a VM that runs

    async def bind(self, record: VMRecord, specs: Iterable[PortSpec]) -> None:
        """All of them or none; not served yet. Those that listen already stay as they are."""
        missing = [spec for spec in specs if not self._listens(record.id, spec)]
        bound = await self._bind_all(missing)
        self._bound.setdefault(record.id, {}).update(bound)

    def serve(self, record: VMRecord) -> None:
        """From now on what is bound is carried into this guest."""
        problems = self._problems.get(record.id, {})
        for spec, listener in self._bound.pop(record.id, {}).items():
            problems.pop(spec, None)
            served = Served(
                listener=listener,
                vm=record.id,
                vm_dir=record.runtime.vm_dir,
                address=record.runtime.guest_ip,
                port=spec.guest_port,
            )
            self._served.setdefault(record.id, set()).add(spec)
            self._carrier.serve(_key(record.id, spec), served)

    async def follow(self, record: VMRecord, *, alive: bool) -> None:
        """Listen to what is stored and nothing else, as far as it could be bound. What goes, goes before this
        returns, and its connections end."""
        stored = set(map(spec_of, record.spec.published)) if alive else set()
        bound = self._bound.get(record.id, {})
        for spec in set(bound) - stored:
            tcplisten.shut(bound.pop(spec))
        self.serve(record)
        gone = self._served.get(record.id, set()) - stored
        for spec in gone:
            self._served[record.id].discard(spec)
            self._carrier.withdraw(_key(record.id, spec))
        self._problems[record.id] = {
            spec: why for spec, why in self._problems.get(record.id, {}).items() if spec in stored
        }
        if gone:
            await self._carrier.rest()
        if not stored:
            self._served.pop(record.id, None)
            self._problems.pop(record.id, None)

    def states(self, record: VMRecord, *, alive: bool) -> tuple[PublishedState, ...]:
        problems = self._problems.get(record.id, {})
        found = []
        for port in record.spec.published:
            spec = spec_of(port)
            listens = alive and spec in self._served.get(record.id, set())
            problem = problems.get(spec, "") or (self._carrier.problem if listens else "")
            found.append(
                PublishedState(
                    host_address=port.host_address,
                    host_port=port.host_port,
                    guest_port=port.guest_port,
                    listening=listens and not problem,
                    problem=problem if alive else "",
                )
            )
        return tuple(found)

    # the daemon's life

    def carriers(self) -> frozenset[ProcessIdentity]:
        """The processes that this daemon has carry ports."""
        return self._carrier.launched

    async def open(self) -> None:
        """Before anything is bound or judged."""
        await self._carrier.settle()

    async def seed(self, records: Sequence[VMRecord]) -> None:
        """What cannot be bound is said, and hinders nothing: `publish` again tries again."""
        for record in records:
            for spec in map(spec_of, record.spec.published):
                try:
                    await self.bind(record, [spec])
                except BangerError as error:
                    log.warning("%s: %s is not published: %s", record.name, spec_text(spec), error.brief)
                    self._problems.setdefault(record.id, {})[spec] = error.brief
            self.serve(record)

    def findings(self) -> list[Finding]:
        """Ports of running VMs on which nobody listens, for `host audit`."""
        return [
            Finding(kind="port", name=endpoint(spec.host_address, spec.host_port), problem=why, vm_id=vm_id)
            for vm_id, problems in self._problems.items()
            for spec, why in problems.items()
        ]

    async def close(self) -> None:
        for listener in (listener for bound in self._bound.values() for listener in bound.values()):
            tcplisten.shut(listener)
        self._bound.clear()
        self._served.clear()
        await self._carrier.close()

    # the hooks

    async def preflight(self, record: VMRecord) -> None:
        await self.try_out(map(spec_of, record.spec.published))

    async def prepare_host(self, subject: Subject, image: Image) -> None:
        await self.bind(subject.record, map(spec_of, subject.record.spec.published))

    async def post_start(self, subject: Subject) -> None:
        self.serve(subject.record)

    async def cleanup(self, subject: Subject) -> None:
        await self.follow(subject.record, alive=False)

    # inside

    def _listens(self, vm_id: str, spec: PortSpec) -> bool:
        return spec in self._bound.get(vm_id, {}) or spec in self._served.get(vm_id, set())

    def _free(self, spec: PortSpec, taken: Sequence[PortSpec]) -> PortSpec:
        """A port that nobody listens on and no VM has, running or not."""
        used = {port.host_port for record in self._table.list() for port in record.spec.published}
        used |= {other.host_port for other in taken}
        for number in random.sample(FREE_PORTS, TRIES):
            if number in used:
                continue
            try:
                tcplisten.shut(tcplisten.listen(spec.host_address, number))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise _explained(spec, error) from error
            return spec._replace(host_port=number)
        raise BangerError(ErrorCode.IN_USE, f"no free port was found on {spec.host_address}")

    async def _bind_all(self, specs: Sequence[PortSpec]) -> dict[PortSpec, socket.socket]:
        bound: dict[PortSpec, socket.socket] = {}
        try:
            for spec in specs:
                try:
                    bound[spec] = tcplisten.listen(spec.host_address, spec.host_port)
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        raise await self._in_use(spec) from error
                    raise _explained(spec, error) from error
        except BaseException:
            for listener in bound.values():
                tcplisten.shut(listener)
            raise
        return bound

    async def _in_use(self, spec: PortSpec) -> PortInUse:
        for record in self._table.list():
            for other in map(spec_of, record.spec.published):
                if overlap(other, spec) and self._listens(record.id, other):
                    return PortInUse(spec, vm=record.name)
        who = await asyncio.to_thread(tcplisten.holder, spec.host_address, spec.host_port)
        return PortInUse(spec, who=who)


def wanted_ports(asked: Iterable[PublishPort]) -> list[PortSpec]:
    return [PortSpec(port.host_address, port.host_port, port.guest_port) for port in asked]


def going_ports(record: VMRecord, request: UnpublishPorts) -> list[PortSpec]:
    """What the request means of what the VM publishes. NOT_FOUND for what it does not."""
    published = [spec_of(port) for port in record.spec.published]
    if request.all:
        return published
    gone: list[PortSpec] = []
    for asked in request.ports:
        address = asked.host_address
        if address is not None:
            address = canonical_address(address) or address
        which = Which(address, asked.host_port, asked.guest_port)
        found = [spec for spec in published if matches(which, spec)]
        if not found:
            raise BangerError(
                ErrorCode.NOT_FOUND,
                f"{record.name} does not publish port {asked.host_port}"
                + (f" of {address[:60]!a}" if address else "")
                + (f" to the guest's port {asked.guest_port}" if asked.guest_port else ""),
                hint=f"it publishes {', '.join(map(spec_text, published)) or 'none'}",
            )
        gone += [spec for spec in found if spec not in gone]
    return gone


def with_ports(record: VMRecord, published: tuple[PublishedPort, ...]) -> VMRecord:
    return msgspec.structs.replace(record, spec=msgspec.structs.replace(record.spec, published=published))


def spec_of(port: PublishedPort) -> PortSpec:
    return PortSpec(port.host_address, port.host_port, port.guest_port)


def port_of(spec: PortSpec) -> PublishedPort:
    return PublishedPort(host_address=spec.host_address, host_port=spec.host_port, guest_port=spec.guest_port)


def _key(vm_id: str, spec: PortSpec) -> str:
    return f"{vm_id}/{spec_text(spec)}"


def _explained(spec: PortSpec, error: OSError) -> BangerError:
    where = endpoint(spec.host_address, spec.host_port)
    if error.errno == errno.EADDRNOTAVAIL:
        return BangerError(
            ErrorCode.HOST_UNSUITABLE,
            f"{where}: {spec.host_address} is not an address of this host",
            hint="leave it out for this host alone, or take 0.0.0.0 for all its addresses",
        )
    if error.errno == errno.EACCES:
        return BangerError(
            ErrorCode.PERMISSION_DENIED, f"{where}: ports below 1024 are root's", hint="choose a higher port"
        )
    return BangerError(ErrorCode.HOST_UNSUITABLE, f"{where} cannot be listened on: {error.strerror}")
