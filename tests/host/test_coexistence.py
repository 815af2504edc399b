"""SPEC §4 beside other firewalls: what stops a guest is named, and the command that doctor gives lets it out.

Each case is held against real packets: nothing named and yet stopped, or named and yet let through, fails.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from banger.helper.inprocess import InProcessHelper
from banger.helper.interface import FirewallRules, GuestRule
from banger.network.neighbours import Obstacle, Program, Way, What, obstacles, programs
from banger.system.firewalls import firewall_facts
from tests.capabilities import require
from tests.host import streets
from tests.host.firewalls import DOCKER, DOCKER_NFT, RULESETS, Ufw, iptables, load, shell
from tests.host.streets import BRIDGE, BRIDGE_IP, SERVER_IP, Place

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("netns", "nft", "iptables", "ufw")]

WEB = 8080
WAY = Way(BRIDGE, BRIDGE_IP, "10.9.0.2", "uplink")


@dataclass
class Street:
    guest: Place
    other: Place
    internet: Place

    def gets_out(self, *, within_s: float = streets.TIMEOUT_S) -> bool:
        """A connection with its answers."""
        with streets.listener(self.internet, SERVER_IP, WEB), self.guest.open() as made:
            made.settimeout(within_s)
            try:
                made.connect((SERVER_IP, WEB))
            except OSError:
                return False
            return True

    def asks_names(self, *, within_s: float = streets.TIMEOUT_S) -> bool:
        with streets.listener(None, BRIDGE_IP, 53, udp=True) as server:
            try:
                return streets.asks(self.guest, server, address=BRIDGE_IP, port=53, within_s=within_s)
            except OSError:
                return False

    def is_kept_in(self) -> bool:
        """What is dropped without a word is not waited for long."""
        return not self.gets_out(within_s=streets.SILENCE_S)

    def asks_in_vain(self) -> bool:
        return not self.asks_names(within_s=streets.SILENCE_S)


@pytest.fixture
async def street(helper: InProcessHelper, instance: str) -> AsyncIterator[Street]:
    """Two guests with NAT, and the internet."""
    await helper.ensure_bridge(BRIDGE, address=BRIDGE_IP, prefix=24)
    with streets.internet() as internet, streets.guest(2, instance) as one, streets.guest(3, instance) as two:
        guests = tuple(
            GuestRule(tap=each.tap, mac=each.mac, address=each.address, nat=True) for each in (one, two)
        )
        await helper.apply_firewall(FirewallRules(bridge=BRIDGE, address=BRIDGE_IP, guests=guests))
        await helper.set_forwarding(True)
        yield Street(one, two, internet)
        await helper.remove_firewall()
        shell("nft flush ruleset")  # of this namespace
    await helper.delete_bridge(BRIDGE)


async def test_a_way_out_that_takes_less_than_guests_send(street: Street) -> None:
    """A VPN's MTU, say: the server hears of it in the connection's first packet, whatever is on the way."""
    streets.ip("link", "set", "uplink", "mtu", "1280")
    with streets.listener(street.internet, SERVER_IP, WEB) as web, street.guest.open() as made:
        made.connect((SERVER_IP, WEB))
        there, _ = web.accept()
        with there:
            assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1280 - 40


async def look(way: Way = WAY) -> tuple[Obstacle, ...]:
    facts = await firewall_facts()
    assert not facts.problem
    return obstacles(facts, way)


async def mended(street: Street, obstacle: Obstacle, run: Callable[[str], str] = shell) -> None:
    """What doctor says to do does it."""
    command = obstacle.remedy.removeprefix("run: ")
    assert command != obstacle.remedy
    run(command)
    assert await look() == ()
    assert street.gets_out()
    assert street.asks_names()


async def test_where_there_is_nobody_nothing_is_named(street: Street) -> None:
    assert await look() == ()
    assert programs(await firewall_facts()) == ()
    assert street.gets_out()
    assert street.asks_names()


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
async def test_dockers_policy_is_named_and_its_chain_lets_guests_out(street: Street, program: str) -> None:
    iptables(program, DOCKER)
    assert street.is_kept_in()
    (found,) = await look()
    assert found.program is Program.DOCKER
    assert found.what == (What.OUT, What.BACK)
    assert "ip filter FORWARD" in found.sentence()
    assert ("iptables-legacy" in found.remedy) is (program == "iptables-legacy")
    run = shell if program == "iptables-legacy" else _with_nft
    await mended(street, found, run)
    assert programs(await firewall_facts()) == (Program.DOCKER,)


def _with_nft(command: str) -> str:
    """Whatever `iptables` means on this host."""
    return shell(command.replace("iptables ", "iptables-nft "))


async def test_half_a_remedy_is_not_enough(street: Street) -> None:
    iptables("iptables-nft", DOCKER)
    iptables("iptables-nft", f"-I DOCKER-USER -i {BRIDGE} -j ACCEPT")
    assert street.is_kept_in()
    (found,) = await look()
    assert found.what == (What.BACK,)
    await mended(street, found, _with_nft)


@pytest.mark.parametrize("policy", ["accept", "drop"])
async def test_dockers_own_nftables(street: Street, policy: str) -> None:
    load(DOCKER_NFT.replace("POLICY", policy))
    found = await look()
    assert street.gets_out() if policy == "accept" else street.is_kept_in()
    assert [each.program for each in found] == ([] if policy == "accept" else [Program.DOCKER_NFT])
    assert all("ip-forward-no-drop" in each.remedy for each in found)
    assert programs(await firewall_facts()) == (Program.DOCKER_NFT,)


async def test_firewalld_is_named_for_names_too(street: Street) -> None:
    load((RULESETS / "firewalld.nft").read_text())
    assert street.is_kept_in()
    assert street.asks_in_vain()
    (found,) = await look()
    assert found.program is Program.FIREWALLD
    assert set(found.what) == {What.OUT, What.DNS}
    assert found.remedy == (
        "run: sudo firewall-cmd --permanent --zone=trusted --add-interface=br-t && sudo firewall-cmd --reload"
    )


async def test_firewalld_that_trusts_the_bridge_is_no_obstacle(street: Street) -> None:
    load((RULESETS / "firewalld-trusted.nft").read_text())
    assert await look() == ()
    assert street.gets_out()
    assert street.asks_names()


async def test_a_real_ufw(street: Street, tmp_path: Path) -> None:
    ufw = Ufw(tmp_path)
    ufw.run("ufw --force enable")
    try:
        assert street.is_kept_in()
        assert street.asks_in_vain()
        (found,) = await look()
        assert found.program is Program.UFW
        assert set(found.what) == {What.OUT, What.DNS}
        await mended(street, found, ufw.run)
    finally:
        ufw.run("ufw --force disable")


async def test_a_table_of_nobody_known(street: Street) -> None:
    load("""table inet strict {
      chain incoming { type filter hook input priority 0; policy drop; iif lo accept; tcp dport 22 accept; }
      chain onward { type filter hook forward priority 5; policy accept; jump more; }
      chain more { ct state established accept; oifname "uplink" meta l4proto { tcp, udp } reject; }
    }""")
    assert street.is_kept_in()
    (found,) = await look()
    assert found.program is Program.OTHER
    assert "inet strict more" in found.sentence()
    await mended(street, found)


async def test_guests_between_where_bridged_packets_are_filtered(
    street: Street, helper: InProcessHelper
) -> None:
    """Docker sets bridge-nf-call-iptables: with isolation off its policy stops guests from each other."""
    calls = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if not calls.exists():
        shell("modprobe br_netfilter")
    guests = tuple(
        GuestRule(tap=each.tap, mac=each.mac, address=each.address) for each in (street.guest, street.other)
    )
    await helper.apply_firewall(
        FirewallRules(bridge=BRIDGE, address=BRIDGE_IP, isolated=False, guests=guests)
    )
    iptables("iptables-nft", DOCKER)
    way = Way(BRIDGE, BRIDGE_IP, "10.9.0.2", "", nat=False, isolated=False)
    calls.write_text("1")
    (found,) = await look(way)
    assert found.what == (What.BETWEEN,)
    assert not streets.answers_ping(street.guest, street.other.address, wait_s=1)
    _with_nft(found.remedy.removeprefix("run: "))
    assert await look(way) == ()
    assert streets.answers_ping(street.guest, street.other.address)
    iptables("iptables-nft", f"-D DOCKER-USER -i {BRIDGE} -j ACCEPT")
    calls.write_text("0")
    assert await look(way) == ()
    assert streets.answers_ping(street.guest, street.other.address)
