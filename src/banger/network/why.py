"""`net why`: from facts about one attempt to the stages of its way, one sentence and what to do. Pure.

Used by vm/netwhy.py. What decides comes from the attempt itself and from the kernel's trace of it; facts
about links, routes and settings say why the kernel did what it did. What guests and other programs name is
printable already, and is quoted here where a shell may read it.
"""

from __future__ import annotations

import shlex

import msgspec

from banger.model.netwhy import Cause, Facts, HostLink, NetRule, NetStage, Probe, Protocol, TraceEvent
from banger.network import whyname, whytrace
from banger.network.whyfacts import (
    Verdict,
    attempt_by_hand,
    best_route,
    is_inside,
    is_of_guest,
    link_of,
    may_be_uplink,
    own_addresses,
)
from banger.network.whyremedy import program_and_remedy
from banger.network.whystages import stages_of
from banger.network.whytrace import Way

_UNREACHABLE = ("EHOSTUNREACH", "ENETUNREACH", "EACCES", "EPERM", "ENETDOWN", "EHOSTDOWN", "ENOPROTOOPT")
_OWN = {
    "the guest has no NAT": Cause.NO_NAT,
    "guests are isolated from each other": Cause.ISOLATED,
    "the host's services are not for guests (host_access)": Cause.NOT_FOR_GUESTS,
    "of the host's addresses only the bridge's is for guests": Cause.NOT_FOR_GUESTS,
    "not the address or the MAC of this tap's guest": Cause.SPOOFED,
}
"""By the comments of helper/ruleset.py; a test sees to it that they are there."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    verdict: Verdict
    stages: tuple[NetStage, ...]


def explain(facts: Facts) -> Explanation:
    verdict = _verdict(facts)
    return Explanation(verdict=verdict, stages=stages_of(facts, verdict))


def place(facts: Facts) -> str:
    """`TCP port 443 of example.org (198.51.100.2)`"""
    where = facts.host
    if facts.target and facts.target != facts.host:
        where = f"{facts.host} ({facts.target})"
    return f"{facts.protocol.value.upper()} port {facts.port} of {where}" if facts.port else where


# what stops it


def _verdict(facts: Facts) -> Verdict:
    if facts.probe is not None and not facts.probe.outcome.error:
        return _through(facts, facts.probe)
    found = _guest_link(facts) or _name(facts) or _guest_route(facts) or _nobody(facts)
    if found is not None:
        return found
    if facts.probe is None:
        raise ValueError("a name that is resolved, and no attempt")
    return _on_the_way(facts, facts.probe)


def _through(facts: Facts, probe: Probe) -> Verdict:
    way = whytrace.forth(probe)
    how = ""
    if way.out and way.out != facts.bridge:
        masked = f" as {way.source}" if way.source not in ("", facts.guest_ip) else ""
        how = f" by {way.out}{masked}"
    took = f"{probe.outcome.milliseconds:g} ms"
    return Verdict(
        cause=Cause.NONE,
        at="",
        sentence=f"nothing stops {facts.vm}: it reaches {place(facts)}{how} in {took}",
    )


def _guest_link(facts: Facts) -> Verdict | None:
    links = [link for link in facts.guest.links if link.name != "lo"] if facts.guest else []
    again = f"banger vm restart {facts.vm}"
    holder = next((link for link in links if link.address == facts.guest_ip), None)
    if holder is not None and holder.up and holder.running:
        return None
    if holder is not None:
        what = (
            f"{holder.name} is down in {facts.vm}"
            if not holder.up
            else f"{holder.name} of {facts.vm} has no carrier"
        )
        up = f"banger vm exec {facts.vm} -- ip link set {shlex.quote(holder.name)} up"
        return Verdict(
            cause=Cause.GUEST_LINK, at="guest link", sentence=what, remedy=up if not holder.up else again
        )
    if not links:
        return Verdict(
            cause=Cause.GUEST_LINK, at="guest link", sentence=f"{facts.vm} has no network card", remedy=again
        )
    others = [link.address for link in links if link.address]
    has = f"has the address {others[0]}" if others else "has no address"
    sentence = f"{links[0].name} of {facts.vm} {has}, and the network knows it as {facts.guest_ip}"
    return Verdict(cause=Cause.GUEST_LINK, at="guest link", sentence=sentence, remedy=again)


def _name(facts: Facts) -> Verdict | None:
    if facts.target:
        return None
    fault = whyname.fault(facts)
    dropped = next((way.drop for one in facts.asked if (way := whytrace.forth(one.probe)).drop), None)
    if fault.cause is Cause.NO_DNS_ANSWER and dropped is not None:
        path = _dropped(
            facts, dropped, next(one.probe for one in facts.asked if one.probe.trace), answer=False
        )
        sentence = f"{facts.vm} cannot ask for the name {facts.host}: {path.sentence}"
        return msgspec.structs.replace(path, at="name", sentence=sentence)
    return Verdict(cause=fault.cause, at="name", sentence=fault.sentence, remedy=fault.remedy)


def _guest_route(facts: Facts) -> Verdict | None:
    if facts.guest is None or is_of_guest(facts):
        return None
    route = best_route(facts.guest.routes, facts.target)
    if route is None:
        return Verdict(
            cause=Cause.GUEST_ROUTE,
            at="guest route",
            sentence=f"{facts.vm} has no route to {facts.target}"
            + ("" if is_inside(facts) else ": its default route is gone"),
            remedy=f"banger vm exec {facts.vm} -- ip route add default via {facts.bridge_ip}",
        )
    unseen = facts.probe is None or (facts.probe.trace is not None and not whytrace.forth(facts.probe).seen)
    if unseen and not is_inside(facts) and route.gateway != facts.bridge_ip:
        by = f"by {route.gateway}" if route.gateway else f"straight into {route.link}"
        return Verdict(
            cause=Cause.GUEST_ROUTE,
            at="guest route",
            sentence=f"{facts.vm} sends what is for {facts.target} {by}, not to {facts.bridge_ip}",
            remedy=f"banger vm exec {facts.vm} -- ip route replace {route.network} via {facts.bridge_ip}",
        )
    return None


def _nobody(facts: Facts) -> Verdict | None:
    if not facts.nobody:
        return None
    return Verdict(
        cause=Cause.NO_ANSWER,
        at="answer",
        sentence=f"no VM that runs has the address {facts.target}",
        remedy="banger ps shows which have one",
    )


def _on_the_way(facts: Facts, probe: Probe) -> Verdict:
    forth, back = whytrace.forth(probe), whytrace.back(probe)
    found = _devices(facts)
    if found is not None:
        return found
    drop = forth.drop or _unasked(facts, probe, forth)
    if drop is not None:
        return _dropped(facts, drop, probe, answer=False)
    if back.drop is not None:
        return _dropped(facts, back.drop, probe, answer=True)
    inside = is_inside(facts)
    local = facts.route is not None and facts.route.local
    answered = any(one.source not in own_addresses(facts) for one in whytrace.answerers(probe))
    if not facts.nat and not inside and not local and not answered:
        return no_nat(facts)
    for found in (_untraced(facts, probe), _nothing_sent(facts, probe, forth)):
        if found is not None and not answered:
            return found
    if probe.outcome.error == "ECONNREFUSED":
        return _refused(facts, probe)
    if inside or local:
        return _near(facts, probe, forth)
    if forth.at("inet first") and not forth.at("inet to_forward") and not answered:
        return _not_routed(facts, forth)
    if forth.at("inet to_forward") and not forth.at("inet last"):
        where = "forward" if not forth.at("inet forward") else "postrouting"
        return _unseen(facts, where)
    return _beyond(facts, probe, forth)


def _unasked(facts: Facts, probe: Probe, forth: Way) -> TraceEvent | None:
    """Who took the question for the next one's MAC, where nothing else was sent."""
    if forth.sent or (probe.flow.gateway == facts.bridge_ip and forth.at("arp input")):
        return None
    return forth.arp_drop


def no_nat(facts: Facts, rule: TraceEvent | None = None) -> Verdict:
    return Verdict(
        cause=Cause.NO_NAT,
        at="firewall",
        sentence=f"{facts.vm} has no NAT: it reaches nothing beyond the host",
        remedy=f"banger vm set {facts.vm} --nat",
        rule=whytrace.rule_of(rule) if rule else None,
    )


def _dropped(facts: Facts, drop: TraceEvent, probe: Probe, *, answer: bool) -> Verdict:
    rule = whytrace.rule_of(drop)
    if whytrace.is_own(drop):
        return _dropped_by_us(facts, drop, rule)
    program, remedy = program_and_remedy(
        drop, probe, bridge=facts.bridge, bridge_ip=facts.bridge_ip, answer=answer
    )
    what = f"the answer of {facts.target} to" if answer else "the packets of"
    how = "the policy" if not drop.handle else "a rule"
    where = f"{how} of chain {drop.chain} in table {drop.family} {drop.table}"
    sentence = f"{program} drops {what} {facts.vm}: {where}"
    return Verdict(
        cause=Cause.FIREWALL,
        at="firewall",
        sentence=sentence,
        remedy=remedy,
        rule=rule,
    )


def _dropped_by_us(facts: Facts, drop: TraceEvent, rule: NetRule) -> Verdict:
    cause = _OWN.get(whytrace.comment_of(drop), Cause.FIREWALL)
    if cause is Cause.NO_NAT:
        return no_nat(facts, drop)
    remedies = {
        Cause.ISOLATED: "set network_isolation = false in config.toml, then: banger daemon stop",
        Cause.NOT_FOR_GUESTS: (
            f"add {facts.port} to host_access in config.toml, then: banger daemon stop"
            if facts.port and facts.target == facts.bridge_ip
            else f"use the bridge's address, {facts.bridge_ip}, and host_access in config.toml"
        ),
        Cause.SPOOFED: f"banger vm restart {facts.vm}",
    }
    words = {
        Cause.ISOLATED: f"{facts.vm} and {facts.host} are guests, which are isolated from each other",
        Cause.NOT_FOR_GUESTS: f"{place(facts)} is this host's own, and not for guests",
        Cause.SPOOFED: f"{facts.vm} sends with another MAC or address than the one that banger gave it",
    }
    said = whytrace.comment_of(drop) or drop.rule or f"rule {drop.handle} of {drop.chain}"
    return Verdict(
        cause=cause,
        at="firewall",
        sentence=words.get(cause, f"banger's own firewall drops the packets of {facts.vm}: {said}"),
        remedy=remedies.get(cause, ""),
        rule=rule,
    )


def _devices(facts: Facts) -> Verdict | None:
    tap, bridge = link_of(facts, facts.tap), link_of(facts, facts.bridge)
    again = f"banger vm restart {facts.vm}"
    if (
        bridge is None
        or not bridge.up
        or not any(a.startswith(f"{facts.bridge_ip}/") for a in bridge.addresses)
    ):
        what = (
            "is gone"
            if bridge is None
            else "is down"
            if not bridge.up
            else f"has lost its address {facts.bridge_ip}"
        )
        fix = (
            f"ip link set {facts.bridge} up"
            if bridge is not None and not bridge.up
            else "banger host audit --fix"
        )
        return Verdict(
            cause=Cause.BRIDGE, at="bridge", sentence=f"the bridge {facts.bridge} {what}", remedy=fix
        )
    if tap is None:
        return Verdict(
            cause=Cause.TAP, at="tap", sentence=f"the tap {facts.tap} of {facts.vm} is gone", remedy=again
        )
    if not tap.up or tap.master != facts.bridge:
        what = "is down" if not tap.up else f"is no port of {facts.bridge}"
        verb = "up" if not tap.up else f"master {facts.bridge}"
        fix = f"ip link set {facts.tap} {verb}"
        return Verdict(
            cause=Cause.TAP, at="tap", sentence=f"the tap {facts.tap} of {facts.vm} {what}", remedy=fix
        )
    return None


def _untraced(facts: Facts, probe: Probe) -> Verdict | None:
    """Without a trace only what is known otherwise can be said."""
    if probe.trace is not None:
        return None
    if not facts.forwarding and not is_inside(facts):
        return _forwarding_off(facts)
    if facts.route is not None and facts.route.error:
        return _no_route(facts)
    if probe.outcome.error == "ECONNREFUSED":
        return None
    return Verdict(
        cause=Cause.UNKNOWN,
        at="firewall",
        sentence=f"{facts.vm} gets no answer from {place(facts)}, and its packets could not be followed: "
        f"{probe.untraced}",
    )


def _nothing_sent(facts: Facts, probe: Probe, forth: Way) -> Verdict | None:
    if forth.seen or is_of_guest(facts):
        return None
    why = " (its own firewall says no)" if probe.outcome.error in ("EPERM", "EACCES") else ""
    return Verdict(
        cause=Cause.UNKNOWN,
        at="tap",
        sentence=f"nothing for {facts.target} comes out of {facts.vm}{why}: "
        "look for a firewall or a VPN inside it",
        remedy=f"banger vm exec {facts.vm} -- nft list ruleset",
    )


def _refused(facts: Facts, probe: Probe) -> Verdict:
    who = next((e for e in whytrace.answerers(probe) if e.source != facts.target), None)
    if who is not None and not any(e.source == facts.target for e in whytrace.answerers(probe)):
        return _rejected(facts, who.source)
    port = f"{facts.protocol.value.upper()} port {facts.port}"
    return Verdict(
        cause=Cause.NOT_LISTENING,
        at="answer",
        sentence=f"{facts.host} is reached, and refuses: nobody listens there on {port}",
        remedy=f"start the service on {facts.host}, or see on which address and port it listens (ss -ltnu)",
    )


def _rejected(facts: Facts, who: str) -> Verdict:
    return Verdict(
        cause=Cause.REJECTED,
        at="answer",
        sentence=f"{who}, on the way to {facts.target}, says that it may or can not be reached",
        remedy="ask whoever runs the network there",
    )


def _near(facts: Facts, probe: Probe, forth: Way) -> Verdict:
    """The host itself, or another guest: nothing said no, nobody said yes."""
    if (
        facts.route is not None
        and facts.route.local
        and forth.at("inet to_host")
        and not forth.at("inet input")
    ):
        return _unseen(facts, "input")
    if (
        facts.route is not None
        and not facts.route.local
        and not forth.at("bridge last", "arp last", "inet last")
    ):
        return _unseen(facts, "bridge")
    who = "the host" if facts.route is not None and facts.route.local else f"{facts.host} (is it running?)"
    return Verdict(
        cause=Cause.NO_ANSWER,
        at="answer",
        sentence=f"the packets of {facts.vm} arrive, and {who} does not answer on {place(facts)}",
        remedy="see whether the service runs, and whether a firewall of its own drops them",
    )


def _not_routed(facts: Facts, forth: Way) -> Verdict:
    if not forth.at("inet prerouting"):
        return _unseen(facts, "prerouting")
    if not facts.forwarding:
        return _forwarding_off(facts)
    if facts.route is not None and facts.route.error:
        return _no_route(facts)
    return Verdict(
        cause=Cause.NO_ROUTE,
        at="host route",
        sentence=f"the host's routing refuses packets for {facts.target} that come from {facts.bridge}",
        remedy=f"ip route get {facts.target} from {facts.guest_ip} iif {facts.bridge}; ip rule",
    )


def _forwarding_off(facts: Facts) -> Verdict:
    return Verdict(
        cause=Cause.FORWARDING_OFF,
        at="forwarding",
        sentence="the host forwards no packets: net.ipv4.ip_forward is off",
        remedy="banger host audit --fix (or: sysctl -w net.ipv4.ip_forward=1)",
    )


def _no_route(facts: Facts) -> Verdict:
    down = [link for link in facts.links if may_be_uplink(link, facts) and not (link.up and link.carrier)]
    if down:
        return _uplink_down(facts, down[0])
    return Verdict(
        cause=Cause.NO_ROUTE,
        at="host route",
        sentence=f"the host has no route to {facts.target}",
        remedy=f"ip route add default via GATEWAY, or a route of its own for {facts.target}",
    )


def _uplink_down(facts: Facts, link: HostLink) -> Verdict:
    what = "is down" if not link.up else "has no carrier (cable, switch or other end)"
    return Verdict(
        cause=Cause.UPLINK_DOWN,
        at="uplink",
        sentence=f"the host's uplink {link.name} {what}",
        remedy=f"ip link set {link.name} up" if not link.up else f"see to the other end of {link.name}",
    )


def _beyond(facts: Facts, probe: Probe, forth: Way) -> Verdict:
    """It has left the host."""
    link = link_of(facts, forth.out)
    if link is not None and not (link.up and link.carrier):
        return _uplink_down(facts, link)
    if forth.source == facts.guest_ip:
        return Verdict(
            cause=Cause.NO_MASQUERADE,
            at="uplink",
            sentence=f"the packets of {facts.vm} leave by {forth.out} with the guest's own address, "
            "and no answer finds its way back",
            remedy="banger host audit --fix; another program's nat rules may come first: nft list ruleset",
        )
    who = next(
        (e for e in whytrace.answerers(probe) if e.source not in (facts.target, facts.bridge_ip)), None
    )
    if who is not None and who.source not in own_addresses(facts):
        return _rejected(facts, who.source)
    if probe.outcome.error in _UNREACHABLE:
        said = f"nobody on {forth.out} has the address that leads there"
    else:
        said = "no answer comes back"
    udp = "; UDP services need not answer" if facts.protocol is Protocol.UDP else ""
    out = f" by {forth.out} as {forth.source}" if forth.out else ""
    return Verdict(
        cause=Cause.NO_ANSWER,
        at="answer",
        sentence=f"the packets of {facts.vm} for {place(facts)} leave this host{out}, and {said}{udp}",
        remedy=f"try it from the host itself: {attempt_by_hand(facts)}",
    )


def _unseen(facts: Facts, where: str) -> Verdict:
    return Verdict(
        cause=Cause.FIREWALL_UNSEEN,
        at="firewall",
        sentence=f"the packets of {facts.vm} vanish on this host ({where}) by nothing that nftables shows",
        remedy="look into iptables-legacy-save, and for eBPF programs: bpftool net",
    )
