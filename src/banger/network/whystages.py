"""The stages of a packet's way, as `net why` shows them: what was seen at each, and where it ends. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from banger.model.netwhy import Facts, Mark, NetStage
from banger.network import whyname, whytrace
from banger.network.whyfacts import Verdict, best_route, is_inside, link_of
from banger.network.whytrace import Way


def stages_of(facts: Facts, verdict: Verdict) -> tuple[NetStage, ...]:
    """In the packet's order, up to the one that stops it; what is behind that was not reached."""
    forth = whytrace.forth(facts.probe) if facts.probe else Way()
    asked = Mark.OK if facts.asked or facts.by_hosts else Mark.SKIPPED
    answer = facts.probe.outcome.error or f"{facts.probe.outcome.milliseconds:g} ms" if facts.probe else ""
    local = facts.route is not None and facts.route.local
    routing: list[NetStage] = []
    uplink: list[NetStage] = []
    if not local and not is_inside(facts):
        routing = [
            _seen("forwarding", "on" if facts.forwarding else "off"),
            _seen("host route", _way_out(facts)),
        ]
        uplink = [_seen("uplink", _uplink_words(facts, forth))]
    tables = _tables(forth, verdict) if verdict.at in ("", "firewall", "uplink", "answer") else []
    # what bridge and prerouting tables take is not routed any more
    early = verdict.at == "firewall" and not forth.at("inet to_forward", "inet to_host")
    stages = [
        _seen("guest link", _guest_words(facts)),
        NetStage(name="name", mark=asked, words=_name_words(facts)),
        _seen("guest route", _route_words(facts)),
        _seen("tap", _link_words(facts, facts.tap)),
        _seen("bridge", _link_words(facts, facts.bridge)),
        *([*tables, *routing] if early else [*routing, *tables]),
        *uplink,
        _seen("answer", answer),
    ]
    return tuple(_marked(stages, verdict))


def _seen(name: str, words: str) -> NetStage:
    return NetStage(name=name, mark=Mark.OK, words=words)


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


def _tables(forth: Way, verdict: Verdict) -> list[NetStage]:
    """Each firewall table that it came through, and as the last one that which decided."""
    decided = [one for one in forth.tables if verdict.rule == whytrace.rule_of(one)]
    rest = [one for one in forth.tables if one not in decided]
    seen = [_seen("firewall", whytrace.words_of(one)) for one in (*rest, *decided[:1])]
    if verdict.at == "firewall" and not decided:
        rule = verdict.rule
        # the rule took the answer, the question's ARP, or is not known
        words = (
            f"table {rule.family} {rule.table}, chain {rule.chain}: {rule.rule or rule.verdict}"
            if rule
            else ""
        )
        seen.append(_seen("firewall", words or verdict.sentence))
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
    return "; ".join(dict.fromkeys(map(whyname.said, facts.asked[:4]))) or "an address"


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


def _way_out(facts: Facts) -> str:
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
