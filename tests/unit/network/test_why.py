"""`net why`'s judgement on facts that are made up: each cause, and that anything at all gets an answer."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from dnslib import QTYPE, RR, TXT, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from banger.helper import ruleset
from banger.helper.interface import FirewallRules
from banger.model.netwhy import (
    Cause,
    Facts,
    Flow,
    GuestLink,
    GuestNetwork,
    GuestRoute,
    HostLink,
    HostRoute,
    Mark,
    NameAsked,
    Outcome,
    Probe,
    Protocol,
    TraceEvent,
)
from banger.network import why
from banger.network.dnsask import question, read_answer
from banger.network.neighbours import Program
from banger.network.why import explain
from banger.network.whyremedy import program_and_remedy
from banger.system.nftrace import read_rules

GUEST, BRIDGE_IP, TARGET, UPLINK = "172.16.0.2", "172.16.0.1", "198.51.100.2", "198.51.100.1"
INSTANCE = "0123456789abcdef"
OURS, TRACE = f"banger_{INSTANCE}", f"banger_{INSTANCE}_why00000000"
FLOW = Flow(
    tap="tap-fc-1",
    guest=GUEST,
    gateway=BRIDGE_IP,
    target=TARGET,
    protocol=Protocol.TCP,
    port=80,
    source=61000,
)
NETWORK = GuestNetwork(
    links=(GuestLink(name="eth0", up=True, running=True, address=GUEST, netmask="255.255.255.0"),),
    routes=(
        GuestRoute(link="eth0", network="0.0.0.0/0", gateway=BRIDGE_IP),
        GuestRoute(link="eth0", network="172.16.0.0/24"),
    ),
    nameservers=(BRIDGE_IP,),
    search=("vm",),
)
LINKS = (
    HostLink(name="br-fc", up=True, carrier=True, addresses=(f"{BRIDGE_IP}/24",), virtual=True),
    HostLink(name="tap-fc-1", up=True, carrier=True, master="br-fc", virtual=True),
    HostLink(name="eth0", up=True, carrier=True, addresses=(f"{UPLINK}/24",)),
)


def event(family: str, chain: str, verdict: str = "accept", **more: object) -> TraceEvent:
    fields = {"table": TRACE, "source": GUEST, "target": TARGET, "protocol": 6, **more}
    return TraceEvent(family=family, chain=chain, verdict=verdict, **fields)  # type: ignore[arg-type]


ENTERED = (
    event("bridge", "first"),
    event("bridge", "input"),
    event("inet", "first"),
    event("inet", "prerouting"),
)
FORWARDED = (*ENTERED, event("inet", "to_forward", oif="eth0"), event("inet", "forward", oif="eth0"))
LEFT = (*FORWARDED, event("inet", "last", source=UPLINK, oif="eth0"))
REFUSED = event("inet", "answers", source=TARGET, target=UPLINK)


def facts(
    trace: tuple[TraceEvent, ...] | None = LEFT, *, error: str = "ETIMEDOUT", **changes: object
) -> Facts:
    made = Facts(
        vm="web",
        nat=True,
        bridge="br-fc",
        bridge_ip=BRIDGE_IP,
        network="172.16.0.0/24",
        guest_ip=GUEST,
        tap="tap-fc-1",
        host=TARGET,
        target=TARGET,
        protocol=Protocol.TCP,
        port=80,
        guest=NETWORK,
        probe=Probe(flow=FLOW, outcome=Outcome(error=error, milliseconds=3.5), trace=trace),
        links=LINKS,
        route=HostRoute(link="eth0", gateway="198.51.100.254"),
    )
    return msgspec.structs.replace(made, **changes)


def asked(rcode: int, *, server: str = BRIDGE_IP, name: str = "example.org", error: str = "") -> NameAsked:
    probe = Probe(flow=msgspec.structs.replace(FLOW, target=server), outcome=Outcome(error=error))
    return NameAsked(name=name, server=server, probe=probe, rcode=rcode)


def unnamed(
    *questions: NameAsked, nat: bool = True, guest: GuestNetwork = NETWORK, names_problem: str = ""
) -> Facts:
    return facts(
        host="example.org",
        target="",
        probe=None,
        route=None,
        asked=questions,
        nat=nat,
        guest=guest,
        names_problem=names_problem,
    )


def guest(**changes: object) -> GuestNetwork:
    return msgspec.structs.replace(NETWORK, **changes)


def link(position: int, **changes: object) -> tuple[HostLink, ...]:
    links = list(LINKS)
    links[position] = msgspec.structs.replace(links[position], **changes)
    return tuple(links)


def dropped(table: str, chain: str, rule: str = "", *, family: str = "ip", handle: int = 7) -> TraceEvent:
    return event(family, chain, "drop", table=table, rule=rule, handle=handle)


CASES: dict[str, tuple[Facts, Cause, str]] = {
    "through": (facts(error=""), Cause.NONE, ""),
    "card down": (
        facts((), guest=guest(links=(GuestLink(name="eth0", up=False, running=False, address=GUEST),))),
        Cause.GUEST_LINK,
        "guest link",
    ),
    "other address": (
        facts((), guest=guest(links=(GuestLink(name="eth0", up=True, running=True, address="10.0.0.1"),))),
        Cause.GUEST_LINK,
        "guest link",
    ),
    "no card": (facts((), guest=guest(links=())), Cause.GUEST_LINK, "guest link"),
    "no default route": (facts((), guest=guest(routes=NETWORK.routes[1:])), Cause.GUEST_ROUTE, "guest route"),
    "another gateway": (
        facts((), guest=guest(routes=(GuestRoute(link="tun0", network="0.0.0.0/0", gateway="10.8.0.1"),))),
        Cause.GUEST_ROUTE,
        "guest route",
    ),
    "no NAT, by our rule": (
        facts((*ENTERED, dropped(OURS, "from_guest", 'comment "the guest has no NAT"', family="inet"))),
        Cause.NO_NAT,
        "firewall",
    ),
    "no NAT, no forwarding": (facts(ENTERED, nat=False, forwarding=False), Cause.NO_NAT, "firewall"),
    "policy": (facts((*FORWARDED, dropped("filter", "FORWARD", handle=0))), Cause.FIREWALL, "firewall"),
    "legacy": (facts(FORWARDED[:-1]), Cause.FIREWALL_UNSEEN, "firewall"),
    "forwarding": (facts(ENTERED, forwarding=False), Cause.FORWARDING_OFF, "forwarding"),
    "no route": (
        facts(ENTERED, route=HostRoute(error="ENETUNREACH"), error="ENETUNREACH"),
        Cause.NO_ROUTE,
        "host route",
    ),
    "no route, uplink down": (
        facts(ENTERED, route=HostRoute(error="ENETUNREACH"), links=link(2, up=False)),
        Cause.UPLINK_DOWN,
        "uplink",
    ),
    "refused by the routing": (facts(ENTERED), Cause.NO_ROUTE, "host route"),
    "no carrier": (facts(links=link(2, carrier=False)), Cause.UPLINK_DOWN, "uplink"),
    "own address": (
        facts((*FORWARDED, event("inet", "last", oif="eth0"))),
        Cause.NO_MASQUERADE,
        "uplink",
    ),
    "refused": (facts((*LEFT, REFUSED), error="ECONNREFUSED"), Cause.NOT_LISTENING, "answer"),
    "rejected": (
        facts((*LEFT, event("inet", "answers", source="203.0.113.1", target=GUEST, protocol=1))),
        Cause.REJECTED,
        "answer",
    ),
    "nobody's address": (
        facts((event("arp", "first", protocol=0),), target="172.16.0.77", nobody=True),
        Cause.NO_ANSWER,
        "answer",
    ),
    "silence": (facts(), Cause.NO_ANSWER, "answer"),
    "tap down": (facts((), links=link(1, up=False)), Cause.TAP, "tap"),
    "tap gone": (facts((), links=(LINKS[0], LINKS[2])), Cause.TAP, "tap"),
    "bridge down": (facts((), links=link(0, up=False)), Cause.BRIDGE, "bridge"),
    "bridge bare": (facts((), links=link(0, addresses=())), Cause.BRIDGE, "bridge"),
    "nothing sent": (facts((), error="EPERM"), Cause.UNKNOWN, "tap"),
    "untraced": (facts(None), Cause.UNKNOWN, "firewall"),
    "no name": (unnamed(asked(3)), Cause.NAME_NOT_FOUND, "name"),
    "no such name among VMs": (
        unnamed(asked(2), asked(3, name="example.org.vm")),
        Cause.NO_DNS_ANSWER,
        "name",
    ),
    "names need NAT": (
        unnamed(asked(5), asked(3, name="example.org.vm"), nat=False),
        Cause.NO_NAT,
        "name",
    ),
    "no DNS answer": (unnamed(asked(-1, error="ECONNREFUSED")), Cause.NO_DNS_ANSWER, "name"),
    "busy port": (unnamed(asked(-1), names_problem="dnsmasq has that port"), Cause.NO_DNS_ANSWER, "name"),
    "wrong resolver": (
        unnamed(asked(-1, server="192.0.2.9"), guest=guest(nameservers=("192.0.2.9",))),
        Cause.WRONG_RESOLVER,
        "name",
    ),
    "no resolver": (unnamed(guest=guest(nameservers=())), Cause.WRONG_RESOLVER, "name"),
    "IPv6 resolver": (unnamed(guest=guest(nameservers=("2001:db8::53",))), Cause.WRONG_RESOLVER, "name"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_cause(case: str) -> None:
    given_facts, cause, at = CASES[case]
    said = explain(given_facts)
    assert (said.verdict.cause, said.verdict.at) == (cause, at), said.verdict
    stops = [number for number, stage in enumerate(said.stages) if stage.mark is Mark.STOP]
    if cause is Cause.NONE:
        assert stops == []
        assert "by eth0 as 198.51.100.1 in 3.5 ms" in said.verdict.sentence
        return
    assert [said.stages[number].name for number in stops] == [at]
    assert all(stage.mark is Mark.NOT_REACHED for stage in said.stages[stops[0] + 1 :])
    assert said.verdict.remedy or cause is Cause.UNKNOWN
    assert "\n" not in said.verdict.sentence + said.verdict.remedy


def test_our_rules_say_what_is_looked_for() -> None:
    rules = FirewallRules(bridge="br-fc", address=BRIDGE_IP)
    text = ruleset.ruleset(INSTANCE, rules)
    for comment in why._OWN:
        assert f'comment "{comment}"' in text


LETS_BY = "let the program that made it accept what comes from br-fc, and the answers"


def remedied(drop: TraceEvent, chains: Sequence[str], *, answer: bool = False) -> tuple[Program, str]:
    seen = tuple(event(drop.family, chain, "jump", table=drop.table) for chain in chains)
    probe = Probe(flow=FLOW, outcome=Outcome(error="ETIMEDOUT"), trace=(*seen, drop))
    return program_and_remedy(drop, probe, bridge="br-fc", bridge_ip=BRIDGE_IP, answer=answer)


def iptables(chain: str, tool: str = "iptables") -> str:
    return (
        f"run: sudo {tool} -I {chain} -i br-fc -j ACCEPT && "
        f"sudo {tool} -I {chain} -o br-fc -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    )


@pytest.mark.parametrize(
    ("table", "chain", "chains", "program", "whole"),
    [
        ("filter", "FORWARD", ["DOCKER-USER"], Program.DOCKER, iptables("DOCKER-USER")),
        ("filter", "DOCKER-FORWARD", ["FORWARD"], Program.DOCKER, iptables("FORWARD")),
        ("filter", "FORWARD", ["FORWARD"], Program.IPTABLES, iptables("FORWARD")),
        ("mangle", "FORWARD", ["FORWARD"], Program.IPTABLES, iptables("FORWARD", "iptables -t mangle")),
        ("mangle", "POSTROUTING", [], Program.IPTABLES, LETS_BY),
        ("raw", "mine", ["PREROUTING"], Program.IPTABLES, LETS_BY),
        (
            "filter",
            "FORWARD",
            ["ufw-before-forward"],
            Program.UFW,
            "run: sudo ufw route allow in on br-fc",
        ),
        (
            "firewalld",
            "filter_FORWARD",
            [],
            Program.FIREWALLD,
            "run: sudo firewall-cmd --permanent --zone=trusted --add-interface=br-fc && "
            "sudo firewall-cmd --reload",
        ),
        (
            "docker-bridges",
            "filter-FORWARD",
            [],
            Program.DOCKER_NFT,
            'set "ip-forward-no-drop": true in /etc/docker/daemon.json; run: sudo systemctl restart docker',
        ),
        (
            "mine",
            "way",
            [],
            Program.OTHER,
            "run: sudo nft insert rule ip mine way iifname br-fc accept && "
            "sudo nft insert rule ip mine way oifname br-fc ct state established,related accept",
        ),
        ("mine; rm", "way", [], Program.OTHER, LETS_BY),
    ],
)
def test_remedies(table: str, chain: str, chains: list[str], program: Program, whole: str) -> None:
    drop = msgspec.structs.replace(dropped(table, chain), oif="eth0")
    assert remedied(drop, chains) == (program, whole)


def test_of_a_bridges_table_there_is_no_command() -> None:
    assert remedied(dropped("mine", "way", family="bridge"), []) == (Program.OTHER, LETS_BY)


@pytest.mark.parametrize(
    ("table", "chain", "chains", "whole"),
    [
        ("filter", "INPUT", ["DOCKER-USER"], "run: sudo iptables -I INPUT -i br-fc -j ACCEPT"),
        ("raw", "PREROUTING", [], "run: sudo iptables -t raw -I PREROUTING -i br-fc -j ACCEPT"),
        ("filter", "ufw-user-input", [], "run: sudo ufw allow in on br-fc"),
        ("mine", "in", [], "run: sudo nft insert rule ip mine in iifname br-fc accept"),
    ],
)
def test_remedies_of_what_is_for_the_host(table: str, chain: str, chains: list[str], whole: str) -> None:
    assert remedied(dropped(table, chain), chains)[1] == whole


@pytest.mark.parametrize(
    ("table", "chain", "whole"),
    [
        (
            "filter",
            "FORWARD",
            "run: sudo iptables -I FORWARD -o br-fc -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ),
        ("filter", "ufw-user-forward", "run: sudo ufw route allow out on br-fc"),
        (
            "mine",
            "way",
            "run: sudo nft insert rule ip mine way oifname br-fc ct state established,related accept",
        ),
    ],
)
def test_remedies_of_answers(table: str, chain: str, whole: str) -> None:
    drop = msgspec.structs.replace(dropped(table, chain), source=TARGET, target=GUEST, oif="br-fc")
    assert remedied(drop, [], answer=True)[1] == whole


def test_rules_are_found_by_their_handle() -> None:
    listed = (
        "table ip filter { # handle 2\n\tchain FORWARD { # handle 1\n"
        "\t\ttype filter hook forward priority filter; policy drop;\n"
        '\t\ttcp dport 80 counter packets 1 bytes 3 drop comment "\x1b[31mno # handle 9" # handle 4\n\t}\n}\n'
    )
    assert read_rules(listed) == {("FORWARD", 4): 'tcp dport 80 drop comment "\ufffd[31mno # handle 9"'}


def answer(packet: bytes, *addresses: str, rcode: int = 0) -> bytes:
    reply = DNSRecord.parse(packet).reply()
    reply.header.rcode = rcode
    for address in addresses:
        reply.add_answer(RR("other.example", QTYPE.A, rdata=A(address)))
    reply.add_answer(RR("other.example", QTYPE.TXT, rdata=TXT("x")))
    return bytes(reply.pack())


def test_answers_of_resolvers() -> None:
    packet = question("example.org.")
    assert read_answer(answer(packet, "192.0.2.1", "192.0.2.2"), packet) == (0, ("192.0.2.1", "192.0.2.2"))
    assert read_answer(answer(packet, rcode=3), packet) == (3, ())
    assert read_answer(packet, packet) == (-1, ())
    assert read_answer(b"", packet) == (-1, ())
    assert read_answer(answer(packet, "192.0.2.1")[:-30], packet)[1] == ()
    with pytest.raises(ValueError, match="cannot be asked for"):
        question("a" * 64)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_none(data: bytes) -> None:
    packet = question("example.org")
    rcode, addresses = read_answer(packet[:2] + data, packet)
    assert rcode >= 0 or not addresses


EVENTS = st.builds(
    TraceEvent,
    family=st.sampled_from(["inet", "bridge", "ip"]),
    table=st.sampled_from([TRACE, OURS, "filter", "other"]),
    chain=st.sampled_from(["first", "input", "to_forward", "forward", "last", "answers", "FORWARD"]),
    verdict=st.sampled_from(["accept", "drop", "continue"]),
    handle=st.integers(0, 3),
    source=st.sampled_from([GUEST, TARGET, UPLINK, "203.0.113.1", ""]),
    target=st.sampled_from([GUEST, TARGET, ""]),
    protocol=st.sampled_from([0, 1, 6]),
    oif=st.sampled_from(["", "eth0", "br-fc"]),
)


@given(
    st.lists(EVENTS, max_size=12),
    st.sampled_from(["", "ETIMEDOUT", "ECONNREFUSED", "EHOSTUNREACH", "EPERM"]),
    st.sampled_from([TARGET, BRIDGE_IP, "172.16.0.9", GUEST]),
    st.booleans(),
    st.sampled_from(
        [None, HostRoute(link="eth0"), HostRoute(local=True, link="lo"), HostRoute(error="ENETUNREACH")]
    ),
)
def test_whatever_is_seen_there_is_one_sentence(
    trace: list[TraceEvent], error: str, target: str, on: bool, route: HostRoute | None
) -> None:
    said = explain(facts(tuple(trace), error=error, target=target, nat=on, forwarding=on, route=route))
    stops = [stage for stage in said.stages if stage.mark is Mark.STOP]
    assert len(stops) == (0 if said.verdict.cause is Cause.NONE else 1)
    assert said.verdict.sentence.isprintable()
