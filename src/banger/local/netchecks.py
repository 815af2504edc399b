"""The network's part of `banger doctor`: asks for the facts that netfindings.py judges. Changes nothing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.local import findings, netfindings
from banger.local.findings import Check, Distribution, Status
from banger.network.dnsforward import RESOLV_CONF, read_servers
from banger.network.neighbours import obstacles, programs
from banger.network.surroundings import way_of
from banger.system import resolved, tcplisten
from banger.system.firewalls import BRIDGE_CALLS, firewall_facts
from banger.system.routes import RoutingFacts, routing_facts

NSSWITCH = "/etc/nsswitch.conf"
FORWARDING = "/proc/sys/net/ipv4/ip_forward"
_DNS_PORT = 53


async def network_checks(
    paths: Paths, settings: Settings, *, root: bool, distribution: Distribution
) -> list[Check]:
    """Of the network namespace that this runs in."""
    unseen = []
    try:
        routing = await routing_facts()
    except OSError as error:
        routing = RoutingFacts()
        said = f"links and routes cannot be seen: {error}"
        unseen.append(Check("network", Status.WARN, said, "run doctor where banger runs, as the same user"))
    found = [
        *unseen,
        netfindings.bridge(settings, routing, _read(f"{paths.state_dir}/instance")),
        netfindings.uplink(routing),
        netfindings.mtu(routing),
        names_check(paths, settings.dns_listen),
        await resolver_check(settings.dns_listen, distribution),
        findings.forwarding(enabled=_read(FORWARDING) == "1"),
        netfindings.bridge_calls(on=_read(BRIDGE_CALLS) == "1", isolated=settings.network_isolation),
    ]
    if not root:
        return [*found, Check("firewall", Status.PASS, "only root sees other firewalls' rules")]
    facts = await firewall_facts()
    stopped = obstacles(facts, way_of(settings, link=routing.uplink))
    return [*found, *netfindings.firewalls(stopped, programs(facts), facts.problem)]


async def resolver_check(listen: str, distribution: Distribution) -> Check:
    serves = await resolved.runs()
    servers = read_servers(_read(RESOLV_CONF))
    stub = any(server.startswith("127.0.0.5") for server in servers) or "resolve" in _hosts_sources()
    local = next((server for server in servers if server.startswith("127.")), "")
    holder = ""
    if local and not serves:
        holder = await asyncio.to_thread(tcplisten.holder, local, _DNS_PORT, udp=True)
    return netfindings.resolver(
        listen,
        serves=serves,
        listed=listed_server(listen),
        stub=stub,
        holder=holder,
        distribution=distribution,
    )


def names_check(paths: Paths, listen: str) -> Check:
    host, _, text = listen.rpartition(":")
    port = int(text)
    busy = not tcplisten.binds(host, port)
    holder = tcplisten.holder(host, port, udp=True) or tcplisten.holder(host, port) if busy else ""
    daemon = _read(f"{paths.state_dir}/daemon.lock")
    ours = bool(daemon) and holder.endswith(f"(pid {daemon})")
    return findings.names_port(listen, busy=busy, holder=holder, ours=ours)


def listed_server(listen: str, resolv_conf: str = RESOLV_CONF) -> bool:
    """Whether the host's resolver has it among its servers; resolv.conf knows port 53 only."""
    host, _, port = listen.rpartition(":")
    return port == str(_DNS_PORT) and host in read_servers(_read(resolv_conf))


def _hosts_sources() -> list[str]:
    """Where the C library looks names up, in its order."""
    for line in _read(NSSWITCH).splitlines():
        key, _, sources = line.partition(":")
        if key.strip() == "hosts":
            return sources.split()
    return []


def _read(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
