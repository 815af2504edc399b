"""What doctor says of each kind of network, without having it."""

from __future__ import annotations

import pytest

from banger.config.settings import Settings
from banger.local import netfindings
from banger.local.findings import Check, Distribution, Status
from banger.network.neighbours import Obstacle, Program, What
from banger.system.routes import LinkFact, RouteFact, RoutingFacts

INSTANCE = "0123456789abcdef"
ETH = LinkFact(name="eth0", mtu=1500, up=True, addresses=("192.0.2.2/24",))
BRIDGE = LinkFact(
    name="br-fc", kind="bridge", alias=f"banger:{INSTANCE}:-:bridge", mtu=1500, addresses=("172.16.0.1/24",)
)
WG = LinkFact(name="wg0", kind="wireguard", mtu=1420, up=True, addresses=("172.16.0.9/32",))
DEFAULT = RouteFact(network="0.0.0.0/0", link="eth0", gateway="192.0.2.1")
DEBIAN = Distribution("debian", "Debian")


def routing(
    *links: LinkFact,
    routes: tuple[RouteFact, ...] = (DEFAULT,),
    rules: tuple[tuple[int, int], ...] = (),
    uplink: str = "eth0",
) -> RoutingFacts:
    return RoutingFacts(links=(ETH, *links), routes=routes, rules=rules, uplink=uplink)


def bridge(found: RoutingFacts, settings: Settings | None = None, instance: str = INSTANCE) -> Check:
    return netfindings.bridge(settings or Settings(), found, instance)


def test_a_free_network_and_our_own_bridge_pass() -> None:
    ours = RouteFact(network="172.16.0.0/24", link="br-fc")
    assert bridge(routing()).status is Status.PASS
    assert bridge(routing(BRIDGE, routes=(DEFAULT, ours))).status is Status.PASS
    assert bridge(routing(), instance="").status is Status.PASS


@pytest.mark.parametrize("alias", ["", "banger:ffffffffffffffff:-:bridge"])
def test_a_bridge_of_anothers_fails(alias: str) -> None:
    other = LinkFact(name="br-fc", kind="bridge", alias=alias)
    check = bridge(routing(other))
    assert check.status is Status.FAIL
    assert "br-fc is a bridge that this banger did not make" in check.message
    assert "bridge_name" in check.hint
    assert bridge(routing(BRIDGE), instance="").status is Status.FAIL


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (routing(WG), "wg0 (a VPN) has 172.16.0.9/32"),
        (
            routing(routes=(DEFAULT, RouteFact(network="172.16.0.0/12", link="eth0"))),
            "172.16.0.0/12 is reached by eth0",
        ),
        (
            routing(
                LinkFact(name="tun0", kind="tun"), routes=(RouteFact(network="172.16.0.128/25", link="tun0"),)
            ),
            "172.16.0.128/25 is reached by tun0 (a VPN)",
        ),
        (routing(routes=(RouteFact(network="172.16.0.0/24"),)), "reached by several links"),
    ],
)
def test_a_network_that_others_use_is_named_with_one_that_is_free(found: RoutingFacts, said: str) -> None:
    check = bridge(found)
    assert check.status is Status.FAIL
    assert said in check.message
    assert 'set bridge_ip in config.toml, for example to "1' in check.hint
    address = check.hint.split('"')[1]
    assert bridge(found, Settings(bridge_ip=address)).status is Status.PASS
    there = RoutingFacts(links=(*found.links, BRIDGE), routes=found.routes, uplink="eth0")
    assert bridge(there).status is Status.WARN


def test_the_way_out() -> None:
    assert netfindings.uplink(routing()).status is Status.PASS
    none = netfindings.uplink(routing(routes=(), uplink=""))
    assert (none.status, bool(none.hint)) == (Status.WARN, True)
    by_wg = (DEFAULT, RouteFact(network="0.0.0.0/0", link="wg0", table=51820))
    vpn = netfindings.uplink(routing(WG, routes=by_wg, rules=((32765, 51820),), uplink="wg0"))
    assert "leave by wg0 (a VPN)" in vpn.message
    assert "default routes by eth0" in vpn.message
    assert "rule 32765 leads to table 51820" in vpn.message


def test_a_small_mtu_is_said() -> None:
    assert netfindings.mtu(routing()).message == "eth0 takes 1500 bytes"
    assert netfindings.mtu(routing(uplink="")).message == "no way out"
    assert "wg0 takes 1420 bytes, guests send 1500" in netfindings.mtu(routing(WG, uplink="wg0")).message


def test_firewalls() -> None:
    stop = Obstacle(Program.DOCKER, (What.OUT, What.BACK), ("ip filter FORWARD",), "run: sudo x")
    (found,) = netfindings.firewalls([stop], [Program.DOCKER], "")
    assert (found.status, found.hint) == (Status.WARN, "run: sudo x")
    assert found.message == (
        "Docker drops what guests with NAT send out and the answers to guests with NAT (ip filter FORWARD)"
    )
    (passed,) = netfindings.firewalls([], [Program.UFW], "")
    assert (passed.status, passed.message) == (Status.PASS, "ufw: guests are let through")
    assert netfindings.firewalls([], [], "")[0].status is Status.PASS
    assert netfindings.firewalls([], [], "nft: no")[0].status is Status.WARN


@pytest.mark.parametrize(("on", "isolated"), [(False, True), (True, True), (True, False)])
def test_bridge_filtering_is_explained(on: bool, isolated: bool) -> None:
    check = netfindings.bridge_calls(on=on, isolated=isolated)
    assert check.status is Status.PASS
    assert ("forward rules of other firewalls" in check.message) is (on and not isolated)


def resolver(
    *,
    serves: bool = False,
    listed: bool = False,
    stub: bool = False,
    holder: str = "",
    family: str = "debian",
) -> Check:
    return netfindings.resolver(
        "127.0.0.1:42069",
        serves=serves,
        listed=listed,
        stub=stub,
        holder=holder,
        distribution=Distribution(family, family or "Alpine"),
    )


def test_the_hosts_resolver() -> None:
    assert resolver(listed=True).status is Status.PASS
    assert resolver(serves=True, stub=True).status is Status.PASS
    cases = {
        "stub-resolv.conf": resolver(serves=True),
        "server=/vm/127.0.0.1#42069": resolver(holder="dnsmasq (pid 7)"),
        "stub-zone": resolver(holder="unbound (pid 7)"),
        "sudo apt install systemd-resolved": resolver(),
        "sudo dnf install systemd-resolved": resolver(family="fedora"),
        "sudo systemctl enable --now systemd-resolved": resolver(family="arch"),
        "docs/names.md": resolver(family=""),
    }
    for hint, check in cases.items():
        assert check.status is Status.WARN
        assert "127.0.0.1:42069" in check.message
        assert hint in check.hint
