"""What a running guest says of itself: its listeners with links, and its own figures for `vm stats`.

VMService's hands, beside vitals.py. Nothing here touches a VM or takes its lock; the guest is hostile, so
all of it is bounded and has a deadline. Nothing is left after a crash.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Iterable
from typing import Protocol

from banger.errors import BangerError, ErrorCode
from banger.guest.agent import AgentClient
from banger.guest.httpprobe import http_scheme
from banger.guest.ports import Listener, ask_listeners
from banger.model.guestview import GuestFigures, GuestPort, VMPorts
from banger.model.records import VMRecord
from banger.vm.liveness import vm_alive
from banger.vm.services import Services

log = logging.getLogger(__name__)

PORTS_TIMEOUT_S = 5.0
FIGURES_TIMEOUT_S = 2.0
PROBE_TIMEOUT_S = 1.5
PROBES_TIMEOUT_S = 3.0
"""For all of them; what has not answered by then has no link."""
PROBES_AT_ONCE = 16
MOST_PROBES = 64
DEFAULT_PORTS = {"http": 80, "https": 443}


def running(services: Services, vm_id: str) -> VMRecord:
    """Of a VM whose guest can be asked. NOT_FOUND, WRONG_STATE."""
    record = _stored(services, vm_id)
    if not _alive(services, record):
        raise BangerError(
            ErrorCode.WRONG_STATE,
            f"VM {record.name} is not running",
            hint=f"banger vm start {record.name}",
        )
    return record


def _stored(services: Services, vm_id: str) -> VMRecord:
    record = services.table.get(vm_id)
    if record is None:
        raise BangerError(ErrorCode.NOT_FOUND, f"no VM {vm_id[:12]}: it was deleted meanwhile")
    return record


def _alive(services: Services, record: VMRecord) -> bool:
    return vm_alive(record, services.cache.get(record.id), boot_id=services.boot_id)


class Probe(Protocol):
    def __call__(self, address: str, port: int, *, host: str, timeout_s: float) -> Awaitable[str]: ...


class GuestView:
    def __init__(self, services: Services, *, probe: Probe = http_scheme) -> None:
        self._services = services
        self._probe = probe

    async def ports(self, vm_id: str) -> VMPorts:
        """WRONG_STATE of a VM that is not alive; GUEST_UNREACHABLE, TIMEOUT, GUEST_ERROR of its agent."""
        record = running(self._services, vm_id)
        told = await ask_listeners(record.runtime.vm_dir, timeout_s=PORTS_TIMEOUT_S)
        host = record.runtime.dns_name or record.runtime.guest_ip
        reachable = {one for one in told.listeners if is_reachable(one, record.runtime.guest_ip)}
        wanted = sorted({one.port for one in reachable if one.protocol == "tcp"})
        schemes = await self._schemes(record.runtime.guest_ip, wanted[:MOST_PROBES], host=host)
        return VMPorts(
            vm_id=record.id,
            name=record.name,
            ports=tuple(_port(one, host if one in reachable else "", schemes) for one in told.listeners),
            left_out=told.left_out,
        )

    async def figures(self, vm_id: str) -> GuestFigures | None:
        """None of a dead VM, and of a guest that does not say within 2 s: its other stats are wanted."""
        record = _stored(self._services, vm_id)
        if not record.runtime.vsock_path or not _alive(self._services, record):
            return None
        try:
            async with asyncio.timeout(FIGURES_TIMEOUT_S):
                async with AgentClient(record.runtime.vm_dir, timeout_s=FIGURES_TIMEOUT_S) as agent:
                    said = await agent.health()
        except (BangerError, TimeoutError) as error:
            log.info("%s: no figures of the guest's own: %s", record.name, error)
            return None
        return GuestFigures(
            uptime_s=said.uptime_s,
            load1=said.load1,
            memory_total_kib=said.memory_total_kib,
            memory_available_kib=said.memory_available_kib,
            root_total_bytes=said.root_total_bytes,
            root_free_bytes=said.root_free_bytes,
            work_total_bytes=said.work_total_bytes or None,
            work_free_bytes=said.work_free_bytes if said.work_total_bytes else None,
        )

    async def _schemes(self, address: str, ports: Iterable[int], *, host: str) -> dict[int, str]:
        loop = asyncio.get_running_loop()
        end = loop.time() + PROBES_TIMEOUT_S
        slots = asyncio.Semaphore(PROBES_AT_ONCE)

        async def ask(port: int) -> tuple[int, str]:
            async with slots:
                left = min(PROBE_TIMEOUT_S, end - loop.time())
                if left <= 0:
                    return port, ""
                return port, await self._probe(address, port, host=host, timeout_s=left)

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(port)) for port in ports]
        return dict(task.result() for task in asked)


def is_reachable(listener: Listener, guest_ip: str) -> bool:
    """Whether the host gets there by the guest's address."""
    address = ipaddress.ip_address(listener.address)
    return bool(guest_ip) and (address.is_unspecified or listener.address == guest_ip)


def _port(listener: Listener, host: str, schemes: dict[int, str]) -> GuestPort:
    scheme = schemes.get(listener.port, "") if host and listener.protocol == "tcp" else ""
    endpoint = f"{host}:{listener.port}" if host else ""
    return GuestPort(
        protocol=listener.protocol,
        address=listener.address,
        port=listener.port,
        uid=listener.uid,
        pid=listener.pid,
        process=listener.process,
        endpoint=endpoint,
        url=f"{scheme}://{host if DEFAULT_PORTS[scheme] == listener.port else endpoint}/" if scheme else "",
    )
