"""The stages of a packet's way, as `net why` shows them: what was seen at each, and where it ends. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from banger.model.netwhy import Facts, Mark, NetRule, NetStage, TraceEvent
from banger.network import whyname, whytrace
from banger.network.whyfacts import Verdict, best_route, is_inside, link_of
from banger.network.whytrace import Way


def stages_of(facts: Facts, verdict: Verdict) -> tuple[NetStage, ...]:
    """In the packet's order, up to the one that stops it; what is behind that was not reached."""
    forth = whytrace.forth(facts.probe) if facts.probe else Way()
    stages = [
        NetStage(name="guest link", mark=Mark.OK, words=_guest_words(facts)),
        NetStage(
            name="name",
            mark=Mark.OK if facts.asked or facts.by_hosts else Mark.SKIPPED,
            words=_name_words(facts),
        ),
        NetStage(name="guest route", mark=Mark.OK, words=_route_words(facts)),
        NetStage(name="tap", mark=Mark.OK, words=_link_words(facts, facts.tap)),
        NetStage(name="bridge", mark=Mark.OK, words=_link_words(facts, facts.bridge)),
        *_tables(forth, last=verdict.rule),
    ]
    if verdict.at == "firewall" and verdict.rule is None:
        stages.append(NetStage(name="firewall", mark=Mark.OK, words=verdict.sentence))
    local = facts.route is not None and facts.route.local
    if not local and not is_inside(facts):
        stages += [
            NetStage(name="forwarding", mark=Mark.OK, words="on" if facts.forwarding else "off"),
            NetStage(name="host route", mark=Mark.OK, words=_host_route_words(facts)),
            NetStage(name="uplink", mark=Mark.OK, words=_uplink_words(facts, forth)),
        ]
        if verdict.at in ("forwarding", "host route", "uplink") or not forth.at("inet to_forward"):
            order = [s for s in stages if s.name not in ("firewall",)]
            stages = order if verdict.at != "firewall" else stages
    answer = facts.probe.outcome.error or f"{facts.probe.outcome.milliseconds:g} ms" if facts.probe else ""
    stages.append(NetStage(name="answer", mark=Mark.OK, words=answer))
    return tuple(_marked(stages, verdict))


def _marked(stages: Sequence[NetStage], verdict: Verdict) -> list[NetStage]:
    found: list[NetStage] = []
    stopped = False
    # of several firewall stages the last is the one that decided
    at = max((n for n, stage in enumerate(stages) if stage.name == verdict.at), default=-1)
    for number, stage in enumerate(stages):
        if stopped:
            found.append(NetStage(name=stage.name, mark=Mark.NOT_REACHED))
        elif number == at:
            stopped = True
            found.append(msgspec.structs.replace(stage, mark=Mark.STOP))
        else:
            found.append(stage)
    return found


def _tables(forth: Way, *, last: NetRule | None) -> list[NetStage]:
    seen = [NetStage(name="firewall", mark=Mark.OK, words=whytrace.words_of(event)) for event in forth.tables]
    if last is not None and (forth.drop is None or whytrace.rule_of(forth.drop) != last):
        event = TraceEvent(**msgspec.structs.asdict(last))  # the answer's
        seen.append(
            NetStage(name="firewall", mark=Mark.OK, words=f"on the way back: {whytrace.words_of(event)}")
        )
    return seen


def _guest_words(facts: Facts) -> str:
    links = [link for link in facts.guest.links if link.name != "lo"] if facts.guest else []
    states = [
        f"{link.name} {'up' if link.up else 'down'}, {link.address or 'no address'}" for link in links[:3]
    ]
    return "; ".join(states) or "no network card"


def _name_words(facts: Facts) -> str:
    if facts.by_hosts:
        return f"{facts.host} is {facts.target} by the guest's /etc/hosts"
    answered = next((one for one in facts.asked if one.addresses), None)
    if answered is not None:
        return f"{answered.name} is {answered.addresses[0]}, says {answered.server}"
    return "; ".join(whyname.said(one) for one in facts.asked[:3]) or "an address"


def _route_words(facts: Facts) -> str:
    if not facts.target or facts.guest is None:
        return ""
    route = best_route(facts.guest.routes, facts.target)
    if route is None:
        return f"none to {facts.target}"
    return f"{route.network} " + (f"via {route.gateway} " if route.gateway else "") + f"on {route.link}"


def _link_words(facts: Facts, name: str) -> str:
    link = link_of(facts, name)
    if link is None:
        return f"{name} is not there"
    state = "up" if link.up else "down"
    return f"{name} {state}" + (f", port of {link.master}" if link.master else "")


def _host_route_words(facts: Facts) -> str:
    if facts.route is None:
        return ""
    if facts.route.error:
        return f"none ({facts.route.error})"
    return f"{facts.route.link}" + (f" via {facts.route.gateway}" if facts.route.gateway else "")


def _uplink_words(facts: Facts, forth: Way) -> str:
    name = forth.out or (facts.route.link if facts.route else "")
    link = link_of(facts, name)
    if link is None:
        return name
    state = "up" if link.up and link.carrier else "without carrier" if link.up else "down"
    masked = f", leaves as {forth.source}" if forth.out and forth.source else ""
    return f"{name} {state}{masked}"
