"""`net why`: gathers the facts about one attempt from inside a guest; network/why.py explains them.

VMService's hands, beside guestview.py. Takes no VM lock and touches nothing: a trace's tables last for the
attempt and are removed with it (helper/tracing.py). Everything has a deadline: it takes some seconds, with
a guest that does not answer about half a minute. After a crash a trace's tables may be left, which reconcile
removes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import secrets
from collections.abc import Awaitable, Sequence
from typing import Protocol as Interface

import msgspec

from banger.config.settings import Settings
from banger.errors import BangerError, ErrorCode
from banger.guest import probe
from banger.helper.interface import Helper
from banger.model import netwhy as model
from banger.model.netwhy import (
    Facts,
    Flow,
    GuestNetwork,
    HostLink,
    HostRoute,
    NameAsked,
    Outcome,
    Probe,
    Protocol,
)
from banger.model.records import VMRecord
from banger.model.states import CLAIMS_LIFE
from banger.network import dnsask
from banger.network.dnspacket import RCode
from banger.network.why import explain
from banger.network.whyfacts import best_route
from banger.system import netpath
from banger.vm.guestview import running
from banger.vm.locks import finish
from banger.vm.services import Services

log = logging.getLogger(__name__)

LOOK_S = 13.0
"""A guest that has no root yet is waited for 10 s by its agent."""
ATTEMPT_S = 4.0
QUESTION_S = 2.0
QUESTIONS_S = 8.0
"""For all of a name's."""
MOST_CANDIDATES = 4
DNS_PORT = 53
END_S = 30.0
TRIES = 3
"""For a port that is free in the guest."""
_LOWEST_SOURCE = 61000
"""Above what Linux gives to others by itself (net.ipv4.ip_local_port_range)."""
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


class Attempt(Interface):
    def __call__(self, vm_dir: str, flow: Flow, *, data: bytes, timeout_s: float) -> Awaitable[Outcome]: ...


class Look(Interface):
    def __call__(self, vm_dir: str, *, timeout_s: float) -> Awaitable[GuestNetwork]: ...


class NetWhyService:
    def __init__(
        self, services: Services, *, attempt: Attempt = probe.attempt, look: Look = probe.look
    ) -> None:
        self._services = services
        self._attempt = attempt
        self._look = look

    async def ask(self, vm_id: str, host: str, *, port: int, protocol: str) -> model.NetWhy:
        """port 0: an echo, whatever the protocol. INVALID_ARGUMENT for a host that no guest can mean;
        WRONG_STATE of a VM that is not alive; GUEST_UNREACHABLE, TIMEOUT, GUEST_ERROR of its agent."""
        wanted = _protocol(port, protocol)
        check_host(host)
        record = running(self._services, vm_id)
        gatherer = Gatherer(
            self._services.helper, self._services.settings, attempt=self._attempt, look=self._look
        )
        problem = self._names_problem(record)
        facts = await gatherer.facts(record, host, port=port, protocol=wanted, names_problem=problem)
        facts = msgspec.structs.replace(facts, nobody=self._is_nobody(facts))
        explained = explain(facts)
        verdict = explained.verdict
        outcome = facts.probe.outcome if facts.probe else Outcome()
        return model.NetWhy(
            vm_id=record.id,
            name=record.name,
            host=host,
            protocol=wanted,
            port=port,
            address=facts.target,
            through=verdict.cause is model.Cause.NONE,
            cause=verdict.cause,
            sentence=verdict.sentence,
            remedy=verdict.remedy,
            rule=verdict.rule,
            stages=explained.stages,
            milliseconds=outcome.milliseconds,
        )

    def _is_nobody(self, facts: Facts) -> bool:
        if not facts.target or facts.target == facts.bridge_ip:
            return False
        if ipaddress.IPv4Address(facts.target) not in ipaddress.IPv4Network(facts.network):
            return False
        addresses = {one.runtime.guest_ip for one in self._services.table.list() if one.state in CLAIMS_LIFE}
        return facts.target not in addresses

    def _names_problem(self, record: VMRecord) -> str:
        said = [
            capability.warnings(record)
            for capability in self._services.capabilities
            if capability.name == "names"
        ]
        return next((words[0] for words in said if words), "")


class Gatherer:
    """The facts of one attempt. attempt and look: the guest's, through its agent."""

    def __init__(self, helper: Helper, settings: Settings, *, attempt: Attempt, look: Look) -> None:
        self._helper = helper
        self._settings = settings
        self._attempt = attempt
        self._look = look

    async def facts(
        self, record: VMRecord, host: str, *, port: int, protocol: Protocol, names_problem: str = ""
    ) -> Facts:
        settings = self._settings
        network = ipaddress.IPv4Network(f"{settings.bridge_ip}/{settings.cidr}", strict=False)
        facts = Facts(
            vm=record.name,
            nat=record.spec.nat_enabled,
            bridge=settings.bridge_name,
            bridge_ip=settings.bridge_ip,
            network=str(network),
            guest_ip=record.runtime.guest_ip,
            tap=record.runtime.tap_device,
            host=host,
            protocol=protocol,
            port=port,
            names_problem=names_problem,
        )
        guest = await self._look(record.runtime.vm_dir, timeout_s=LOOK_S)
        facts = msgspec.structs.replace(facts, guest=guest)
        facts = await self._resolved(record, facts)
        if facts.target:
            data = dnsask.question("example.org") if (protocol, port) == (Protocol.UDP, DNS_PORT) else b""
            facts = msgspec.structs.replace(
                facts, probe=await self._probe(record, facts, data=data, timeout_s=ATTEMPT_S)
            )
        return await self._with_host(facts)

    # names

    async def _resolved(self, record: VMRecord, facts: Facts) -> Facts:
        """With the target, by address, the guest's hosts file or its resolvers, in libc's order."""
        assert facts.guest is not None
        with contextlib.suppress(ValueError):
            return msgspec.structs.replace(facts, target=str(ipaddress.IPv4Address(facts.host)))
        by_hosts = facts.guest.hosts.get(facts.host.lower().rstrip("."))
        if by_hosts:
            return msgspec.structs.replace(facts, target=by_hosts, by_hosts=True)
        servers = [server for server in facts.guest.nameservers if ":" not in server]
        asked: list[NameAsked] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUESTIONS_S):
                for name in candidates(facts.host, facts.guest.search):
                    await self._ask(record, facts, name=name, servers=servers, asked=asked)
                    if asked and asked[-1].addresses:
                        return msgspec.structs.replace(
                            facts, target=asked[-1].addresses[0], asked=tuple(asked)
                        )
        return msgspec.structs.replace(facts, asked=tuple(asked))

    async def _ask(
        self, record: VMRecord, facts: Facts, *, name: str, servers: Sequence[str], asked: list[NameAsked]
    ) -> None:
        """One server after the other, to the first that knows; asked gets each as it has answered."""
        for server in servers:
            question = dnsask.question(name)
            at = msgspec.structs.replace(facts, target=server, protocol=Protocol.UDP, port=DNS_PORT)
            tried = await self._probe(record, at, data=question, timeout_s=QUESTION_S)
            rcode, addresses = dnsask.read_answer(tried.outcome.answer, question)
            asked.append(NameAsked(name=name, server=server, probe=tried, rcode=rcode, addresses=addresses))
            if rcode in (RCode.NOERROR, RCode.NXDOMAIN):
                break

    # the attempt

    async def _probe(self, record: VMRecord, facts: Facts, *, data: bytes, timeout_s: float) -> Probe:
        """With the kernel's trace of it, where that can be had. Twice where the first says nothing of it."""
        tried = await self._from_free_port(record, facts, data=data, timeout_s=timeout_s)
        if _is_of_an_earlier_one(tried):
            tried = await self._from_free_port(record, facts, data=data, timeout_s=timeout_s)
        return tried

    async def _from_free_port(
        self, record: VMRecord, facts: Facts, *, data: bytes, timeout_s: float
    ) -> Probe:
        for left in reversed(range(TRIES)):
            flow = Flow(
                tap=facts.tap,
                guest=facts.guest_ip,
                gateway=_gateway(facts),
                target=facts.target,
                protocol=facts.protocol,
                port=facts.port,
                source=_LOWEST_SOURCE + secrets.randbelow(65536 - _LOWEST_SOURCE),
            )
            tried = await self._traced(record.runtime.vm_dir, flow, data=data, timeout_s=timeout_s)
            if tried.outcome.error != "EADDRINUSE" or not left:
                return tried
        raise AssertionError("no try was made")

    async def _traced(self, vm_dir: str, flow: Flow, *, data: bytes, timeout_s: float) -> Probe:
        helper = self._helper
        try:
            token = await helper.begin_trace(flow)
        except (BangerError, OSError) as error:
            log.info("no trace: %s", error)
            outcome = await self._attempt(vm_dir, flow, data=data, timeout_s=timeout_s)
            return Probe(flow=flow, outcome=outcome, trace=None, untraced=str(error))
        try:
            outcome = await self._attempt(vm_dir, flow, data=data, timeout_s=timeout_s)
        finally:
            trace = await finish(helper.end_trace(token), deadline_s=END_S)
        return Probe(flow=flow, outcome=outcome, trace=trace)

    # the host

    async def _with_host(self, facts: Facts) -> Facts:
        forwarding = await self._helper.forwarding()
        links = await netpath.host_links()
        bridge = _bridge_of(links, facts)
        facts = msgspec.structs.replace(facts, bridge=bridge, links=links, forwarding=forwarding)
        if not facts.target:
            return facts
        return msgspec.structs.replace(facts, route=_route(facts))


def check_host(host: str) -> None:
    """An IPv4 address or a name; INVALID_ARGUMENT for the rest."""
    with contextlib.suppress(ValueError):
        ipaddress.IPv4Address(host)
        return
    with contextlib.suppress(ValueError):
        ipaddress.IPv6Address(host.strip("[]").partition("%")[0])
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT,
            f"{host[:60]!a} is an IPv6 address, and guests have no IPv6",
            hint="name an IPv4 address",
        )
    if not _is_name(host) or host.removesuffix(".").rpartition(".")[2].isdigit():
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT,
            f"{host[:80]!a} is no name and no IPv4 address",
            hint="HOST[:PORT], as in example.org:443",
        )


def candidates(name: str, search: Sequence[str]) -> list[str]:
    """What libc asks for, in its order (ndots:1). search: the guest's words, not names for sure."""
    if name.endswith("."):
        return [name.rstrip(".")]
    longer = [found for domain in search if _is_name(found := f"{name}.{domain}")]
    return ([name, *longer] if "." in name else [*longer, name])[:MOST_CANDIDATES]


def _is_name(text: str) -> bool:
    return len(text) <= 253 and all(map(_LABEL.fullmatch, text.removesuffix(".").split(".")))


def _protocol(port: int, protocol: str) -> Protocol:
    if not 0 <= port <= 65535 or protocol not in (Protocol.TCP, Protocol.UDP):
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"{protocol[:20]!a} port {port} is none")
    return Protocol(protocol) if port else Protocol.ICMP


def _is_of_an_earlier_one(tried: Probe) -> bool:
    """Linux asks for a neighbour three times, a second apart; who wants to send to it meanwhile waits too,
    and hears EHOSTUNREACH a second after the last. All three may have been before the trace began. The next
    to send asks anew, at once."""
    return tried.outcome.error == "EHOSTUNREACH" and not tried.trace


def _gateway(facts: Facts) -> str:
    """Whom the guest asks for by ARP."""
    route = best_route(facts.guest.routes, facts.target) if facts.guest else None
    return (route.gateway if route else "") or facts.target


def _bridge_of(links: Sequence[HostLink], facts: Facts) -> str:
    """The one that its tap is on: there may be several."""
    tap = next((link for link in links if link.name == facts.tap), None)
    return tap.master if tap is not None and tap.master else facts.bridge


def _route(facts: Facts) -> HostRoute:
    """As for a packet of the guest's, which policy routing may send elsewhere than the host's own."""
    plain = netpath.route_to(facts.target)
    inside = ipaddress.IPv4Address(facts.target) in ipaddress.IPv4Network(facts.network)
    if plain.local or plain.error or inside or not facts.forwarding:
        return plain
    return netpath.route_to(facts.target, source=facts.guest_ip, link=facts.bridge)
