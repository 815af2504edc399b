"""Why a name was not resolved: what the resolvers that the guest's resolv.conf names said. Pure."""

from __future__ import annotations

import ipaddress

import msgspec

from banger.model.netwhy import Cause, Facts, NameAsked
from banger.network import whytrace
from banger.network.dnspacket import RCode


class NameFault(msgspec.Struct, frozen=True, kw_only=True):
    cause: Cause
    sentence: str
    remedy: str = ""


def said(one: NameAsked) -> str:
    """`172.16.0.1: no such name`"""
    words = {
        RCode.NOERROR: "no IPv4 address" if not one.addresses else ", ".join(one.addresses[:3]),
        RCode.NXDOMAIN: "no such name",
        RCode.SERVFAIL: "cannot find out (SERVFAIL)",
        RCode.REFUSED: "refuses to say (REFUSED)",
    }
    if one.rcode < 0:
        return f"{one.server}: no answer ({one.probe.outcome.error or 'nonsense'})"
    return f"{one.server}: {words.get(RCode(one.rcode)) if one.rcode in set(RCode) else f'error {one.rcode}'}"


def fault(facts: Facts) -> NameFault:
    """Of a name that has no address."""
    servers = facts.guest.nameservers if facts.guest else ()
    use_ours = (
        f"banger vm exec {facts.vm} -- sh -c 'echo nameserver {facts.bridge_ip} > /etc/resolv.conf' "
        f"(or restart it: banger vm restart {facts.vm})"
    )
    if not servers:
        return NameFault(
            cause=Cause.WRONG_RESOLVER,
            sentence=f"{facts.vm} has nobody to ask for {facts.host}: its /etc/resolv.conf names no resolver",
            remedy=use_ours,
        )
    # libc takes the first answer and goes on after a failure; NAME.vm says nothing of example.org
    plain = facts.host.rstrip(".")
    asked = [one for one in facts.asked if "." not in plain or one.name == plain]
    told = next((one for one in asked if one.rcode in (RCode.NOERROR, RCode.NXDOMAIN)), None)
    if told is not None:
        if told.server != facts.bridge_ip and not _is_loopback(told.server) and facts.host.endswith(".vm"):
            return _foreign(facts, told.server, f"says {facts.host} does not exist", use_ours)
        return NameFault(
            cause=Cause.NAME_NOT_FOUND,
            sentence=f"there is no IPv4 address for the name {facts.host}, says {told.server}",
            remedy="see how it is written"
            if not facts.host.endswith(".vm")
            else "see whether that VM runs: banger ps",
        )
    refused = next((one for one in asked if one.rcode == RCode.REFUSED), None)
    if refused is not None and refused.server == facts.bridge_ip and not facts.nat:
        return NameFault(
            cause=Cause.NO_NAT,
            sentence=f"{facts.vm} has no NAT: names other than those of VMs are not resolved for it",
            remedy=f"banger vm set {facts.vm} --nat",
        )
    foreign = next((s for s in servers if s != facts.bridge_ip and not _is_loopback(s)), "")
    if foreign and facts.bridge_ip not in servers:
        return _foreign(facts, foreign, "does not answer", use_ours)
    if any(_is_loopback(one.server) for one in facts.asked):
        return NameFault(
            cause=Cause.NO_DNS_ANSWER,
            sentence=f"the resolver inside {facts.vm} gets no answer for {facts.host}",
            remedy=f"banger vm exec {facts.vm} -- resolvectl status; it should ask {facts.bridge_ip}",
        )
    return _ours(facts)


def _ours(facts: Facts) -> NameFault:
    ours = next((one for one in facts.asked if one.server == facts.bridge_ip), None)
    # a question that arrived, and was not refused, is with the host's resolver for longer than a guest waits
    waits = ours is not None and ours.probe.outcome.error == "ETIMEDOUT" and not facts.names_problem
    if ours is not None and (ours.rcode >= 0 or (waits and whytrace.forth(ours.probe).at("inet input"))):
        return NameFault(
            cause=Cause.NO_DNS_ANSWER,
            sentence=f"there is no DNS answer for {facts.host}: this host's own resolver gives banger none",
            remedy=f"see whether the host resolves it: getent hosts {facts.host} (see /etc/resolv.conf)",
        )
    if facts.names_problem:
        return NameFault(
            cause=Cause.NO_DNS_ANSWER,
            sentence=f"there is no DNS answer for {facts.host} on {facts.bridge_ip}: {facts.names_problem}",
            remedy="banger doctor",
        )
    return NameFault(
        cause=Cause.NO_DNS_ANSWER,
        sentence=f"there is no DNS answer for {facts.host}: nobody answers on {facts.bridge_ip} port 53",
        remedy="banger daemon stop && banger vm list (starts it afresh), then see banger doctor",
    )


def _foreign(facts: Facts, server: str, what: str, use_ours: str) -> NameFault:
    return NameFault(
        cause=Cause.WRONG_RESOLVER,
        sentence=f"{facts.vm} asks {server} for names, which {what}; its resolver is {facts.bridge_ip}",
        remedy=use_ours,
    )


def _is_loopback(server: str) -> bool:
    return ipaddress.ip_address(server).is_loopback
