"""Reading other programs' rules: what is understood decides, what is not accuses nobody. The real ones are in
tests/host/test_coexistence.py."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.network.iptablesave import parse_save
from banger.network.neighbours import Program, Way, What, obstacles, programs
from banger.system.firewalls import FirewallFacts

WAY = Way("br-fc", "172.16.0.1", "172.16.0.7", "eth0")

Rule = list[dict[str, object]]
ACCEPT: dict[str, object] = {"accept": None}
DROP: dict[str, object] = {"drop": None}


def meta(key: str, right: object, *, op: str = "==") -> dict[str, object]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def payload(protocol: str, name: str, *, right: object) -> dict[str, object]:
    return {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": name}}, "right": right}}


def facts(*rules: Rule, policy: str = "accept", table: str = "t", hook: str = "forward") -> FirewallFacts:
    base = {"family": "inet", "table": table}
    entries: list[dict[str, dict[str, object]]] = [
        {"metainfo": {}},
        {"table": {**base, "name": table}},
        {"chain": {**base, "name": "c", "type": "filter", "hook": hook, "policy": policy}},
        {"chain": {**base, "name": "sub"}},
        {"set": {**base, "name": "links", "elem": ["br-fc", {"elem": {"val": "br-x"}}]}},
        {"map": {**base, "name": "where", "elem": [["br-fc", {"jump": {"target": "sub"}}]]}},
        {"rule": {**base, "chain": "sub", "expr": [DROP]}},
    ]
    entries += [{"rule": {**base, "chain": "c", "expr": rule}} for rule in rules]
    return FirewallFacts(nft=json.dumps({"nftables": entries}).encode())


def out_is_stopped(*rules: Rule, policy: str = "accept") -> bool:
    return any(What.OUT in found.what for found in obstacles(facts(*rules, policy=policy), WAY))


UNKNOWN: dict[str, object] = {"xt": {"type": "match", "name": "recent"}}
CONNTRACK: dict[str, object] = {"xt": {"type": "match", "name": "conntrack"}}
NEW: dict[str, object] = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}


@pytest.mark.parametrize(
    ("rule", "stopped"),
    [
        ([DROP], True),
        ([{"reject": {"type": "icmpx"}}], True),
        ([{"xt": {"type": "target", "name": "REJECT"}}], True),
        ([{"xt": {"type": "target", "name": "LOG"}}, {"counter": {}}], False),
        ([meta("iifname", "br-fc"), DROP], True),
        ([meta("iifname", "br-*"), DROP], True),
        ([meta("iifname", "docker0"), DROP], False),
        ([meta("iifname", "docker0", op="!="), DROP], True),
        ([meta("iifname", {"set": ["docker0", "br-fc"]}), DROP], True),
        ([meta("iifname", "@links"), DROP], True),
        ([meta("iifname", "@gone"), DROP], False),
        ([meta("l4proto", 6), DROP], True),
        ([meta("l4proto", {"set": ["udp", "icmp"]}), DROP], False),
        ([meta("nfproto", "ipv6"), DROP], False),
        ([meta("mark", 7), DROP], False),
        ([payload("ip", "saddr", right={"prefix": {"addr": "172.16.0.0", "len": 24}}), DROP], True),
        ([payload("ip", "saddr", right={"range": ["172.16.0.8", "172.16.0.9"]}), DROP], False),
        ([payload("ip", "saddr", right="172.16.0.7"), DROP], True),
        ([payload("ip6", "saddr", right="fe80::1"), DROP], False),
        ([payload("tcp", "dport", right={"range": [400, 500]}), DROP], True),
        ([payload("udp", "dport", right=53), DROP], False),
        ([NEW, DROP], True),
        ([UNKNOWN, DROP], False),
        ([{"limit": {"rate": 1}}, DROP], False),
        ([{"jump": {"target": "sub"}}], True),
        ([{"goto": {"target": "nowhere"}}], False),
        ([{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@where"}}], True),
        ([{"vmap": {"key": {"meta": {"key": "oifname"}}, "data": "@where"}}], False),
        ([{"vmap": {"key": {"meta": {"key": "oifname"}}, "data": {"set": [["eth0", DROP]]}}}], True),
    ],
)
def test_a_rule(rule: Rule, stopped: bool) -> None:
    assert out_is_stopped(rule) is stopped


@pytest.mark.parametrize(
    ("rules", "stopped"),
    [
        ([], True),
        ([[meta("iifname", "br-fc"), ACCEPT]], False),
        ([[UNKNOWN, ACCEPT]], True),
        ([[meta("iifname", "br-fc"), UNKNOWN, ACCEPT]], False),
        ([[CONNTRACK, ACCEPT]], True),
        ([[meta("iifname", "br-fc"), DROP], [ACCEPT]], True),
        ([[ACCEPT], [meta("iifname", "br-fc"), DROP]], False),
        ([[UNKNOWN, {"return": None}], [ACCEPT]], True),
    ],
)
def test_a_policy_of_drop(rules: list[Rule], stopped: bool) -> None:
    assert out_is_stopped(*rules, policy="drop") is stopped


def test_answers_pass_where_connections_are_known() -> None:
    (found,) = obstacles(facts([CONNTRACK, ACCEPT], policy="drop"), WAY)
    assert found.what == (What.OUT,)


def test_a_chain_that_calls_itself_is_left() -> None:
    assert not out_is_stopped([{"jump": {"target": "c"}}])


def test_bangers_own_tables_are_not_judged() -> None:
    assert obstacles(facts([DROP], table="banger_0123456789abcdef"), WAY) == ()


def test_names_are_asked_for_on_the_bridge() -> None:
    (found,) = obstacles(facts(policy="drop", hook="input"), WAY)
    assert found.what == (What.DNS,)
    assert found.remedy == (
        "run: sudo nft insert rule inet t c iifname br-fc ip daddr 172.16.0.1 th dport 53 accept"
    )
    assert found.sentence() in found.warning()


SAVED = """# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -j DROP
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [12:900]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-USER ! -i docker0 -p tcp -m tcp --dport 80:90 -m comment --comment "a -j DROP" -j REJECT
-A DOCKER-USER -s 10.0.0.0/8 -m recent --name bad -j LOG
COMMIT
"""


def test_what_old_style_iptables_saves() -> None:
    chains = {chain.name: chain for chain in parse_save(SAVED)}
    assert {name: chain.policy for name, chain in chains.items()} == {
        "INPUT": "ACCEPT",
        "FORWARD": "DROP",
        "DOCKER-USER": "",
    }
    assert chains["FORWARD"].rules[0] == [{"jump": {"target": "DOCKER-USER"}}]
    assert chains["FORWARD"].rules[1][0] == meta("oifname", "docker*")
    assert chains["DOCKER-USER"].rules[0] == [
        meta("iifname", "docker0", op="!="),
        meta("l4proto", "tcp"),
        payload("tcp", "dport", right={"range": [80, 90]}),
        {"reject": None},
    ]
    assert {"xt": {"type": "match", "name": "recent"}} in chains["DOCKER-USER"].rules[1]
    (found,) = obstacles(FirewallFacts(legacy=SAVED), WAY)
    assert (found.program, found.what) == (Program.DOCKER, (What.OUT, What.BACK))
    assert "sudo iptables-legacy -I DOCKER-USER -i br-fc -j ACCEPT" in found.remedy
    assert programs(FirewallFacts(legacy=SAVED)) == (Program.DOCKER,)


@pytest.mark.parametrize(
    ("saved", "stopped"),
    [
        ("-p tcp -j DROP", True),
        ("-p tcp -m tcp --tcp-flags FIN,SYN FIN,SYN -j DROP", False),
        ("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP", False),
        ("-m conntrack --ctstate NEW --ctdir REPLY -j DROP", False),
        ("-f -j DROP", False),
        ("-m conntrack --ctstate NEW -j DROP", True),
    ],
)
def test_an_option_that_is_not_understood_accuses_nobody(saved: str, stopped: bool) -> None:
    legacy = f"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {saved}\nCOMMIT\n"
    found = obstacles(FirewallFacts(legacy=legacy), WAY)
    assert any(What.OUT in each.what for each in found) is stopped


WORDS = [
    "match",
    "left",
    "right",
    "op",
    "meta",
    "key",
    "vmap",
    "data",
    "set",
    "elem",
    "jump",
    "prefix",
    "target",
    "xt",
    "name",
    "type",
    "drop",
    "range",
    "addr",
    "payload",
    "ct",
    "val",
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(["@links", "br-fc", "drop"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(WORDS),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(st.lists(st.lists(JSON, max_size=3), max_size=4))
def test_any_expressions(rules: list[list[object]]) -> None:
    base = {"family": "ip", "table": "filter", "chain": "c"}
    chain = {"chain": {**base, "name": "c", "hook": "forward", "type": "filter"}}
    entries = [chain, *({"rule": {**base, "expr": rule}} for rule in rules)]
    obstacles(FirewallFacts(nft=json.dumps({"nftables": entries}).encode()), WAY)


@given(st.binary(max_size=60), st.text(max_size=120))
def test_any_bytes(listed: bytes, saved: str) -> None:
    found = FirewallFacts(nft=listed, legacy=f"*filter\n:FORWARD DROP [0:0]\n-A FORWARD {saved}")
    obstacles(found, WAY)
    programs(found)
