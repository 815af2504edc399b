"""`net why` on real tables and links: each fault is staged in a namespace, the kernel's trace tells which.

A guest is a namespace (tests/host/streets.py) that makes the attempts which the agent makes in a real one.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from banger.config.paths import Paths
from banger.helper import marks
from banger.helper.inprocess import InProcessHelper
from banger.model.netwhy import Cause, Flow, GuestLink, GuestNetwork, GuestRoute, Mark, Outcome, Protocol
from banger.network.firewall import Firewall
from banger.network.why import Explanation, explain
from banger.store.database import Database
from banger.store.settings import SettingTable
from banger.system import nft
from banger.vm.netwhy import Gatherer
from tests.capabilities import require
from tests.host import streets
from tests.host.firewalls import shell
from tests.host.streets import BRIDGE, BRIDGE_IP, SERVER_IP, UPLINK_IP, Place
from tests.host.test_firewall import SETTINGS, Street, record_of
from tests.host.test_firewall import bridge_netfilter as bridge_netfilter

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("netns", "nft")]

WEB = 8080
ATTEMPT_S = 1.0
"""Long enough for a namespace's answer; what is dropped is waited for so long."""
ASKS_MS = 200
"""Between two of a guest's three questions for a MAC: as in the product an attempt outlasts them all."""
DEFAULT = GuestRoute(link="eth0", network="0.0.0.0/0", gateway=BRIDGE_IP)
ON_LINK = GuestRoute(link="eth0", network="10.9.0.0/24")


@dataclass
class Asker:
    """A street, and its first guest's questions."""

    street: Street
    helper: InProcessHelper
    network: GuestNetwork
    instance: str
    vm: int = 2
    nat: bool = True
    attempt_s: float = ATTEMPT_S

    async def __call__(
        self, host: str, port: int = 0, *, protocol: Protocol = Protocol.TCP, names_problem: str = ""
    ) -> Explanation:
        gatherer = Gatherer(self.helper, SETTINGS, attempt=self.attempt, look=self.look)
        record = record_of(self.vm, nat=self.nat)
        wanted = protocol if port else Protocol.ICMP
        facts = await gatherer.facts(record, host, port=port, protocol=wanted, names_problem=names_problem)
        return explain(facts)

    @property
    def place(self) -> Place:
        return self.street.first if self.vm == 2 else self.street.second

    async def look(self, vm_dir: str, *, timeout_s: float) -> GuestNetwork:
        return self.network

    async def attempt(self, vm_dir: str, flow: Flow, *, data: bytes, timeout_s: float) -> Outcome:
        return await asyncio.to_thread(self._attempt, flow, data)

    def _attempt(self, flow: Flow, data: bytes) -> Outcome:
        """As agent/src/probe.c does it."""
        if flow.protocol is Protocol.ICMP:
            argv = ["ip", "netns", "exec", self.place.netns, "ping", "-nqc1", "-W10", "-e", str(flow.source)]
            done = subprocess.run([*argv, flow.target], check=False, capture_output=True, timeout=30)
            return Outcome(error="" if done.returncode == 0 else "ETIMEDOUT", milliseconds=1.0)
        kind = socket.SOCK_STREAM if flow.protocol is Protocol.TCP else socket.SOCK_DGRAM
        with self.place.open(kind) as made:
            made.settimeout(self.attempt_s)
            try:
                if kind == socket.SOCK_DGRAM:
                    made.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
                made.bind(("0.0.0.0", flow.source))
                made.connect((flow.target, flow.port))
                if kind == socket.SOCK_DGRAM:
                    made.send(data)
                    return Outcome(milliseconds=1.0, answer=made.recv(4096))
            except TimeoutError:
                return Outcome(error="ETIMEDOUT", milliseconds=self.attempt_s * 1000)
            except OSError as error:
                return Outcome(error=errno.errorcode[error.errno or errno.EIO], milliseconds=1.0)
        return Outcome(milliseconds=1.0)


@pytest.fixture
async def why(helper: InProcessHelper, instance: str, paths: Paths) -> AsyncIterator[Asker]:
    database = await Database.open(paths.database)
    await helper.ensure_bridge(BRIDGE, address=BRIDGE_IP, prefix=24)
    with streets.internet() as internet, streets.guest(2, instance) as one, streets.guest(3, instance) as two:
        for place in (one, two):
            neighbours(place, "retrans_time_ms", ASKS_MS)
        before = SettingTable(database)
        records = [record_of(number, nat=number == 2) for number in (2, 3)]
        firewall = Firewall(helper, SETTINGS, records=lambda: records, before=before)
        await firewall.refresh()
        network = GuestNetwork(
            links=(
                GuestLink(name="eth0", up=True, running=True, address="10.9.0.2", netmask="255.255.255.0"),
            ),
            routes=(DEFAULT, ON_LINK),
            nameservers=(BRIDGE_IP,),
            search=("vm",),
        )
        yield Asker(Street(one, two, internet, firewall, helper, before, records), helper, network, instance)
        assert not [name for _, name in await nft.tables() if marks.is_trace_table(name)]
        await firewall.remove()
    await helper.delete_bridge(BRIDGE)
    await database.close()


def neighbours(place: Place, name: str, value: int) -> None:
    """A setting of how its kernel asks for MACs."""
    place.run(lambda: Path("/proc/sys/net/ipv4/neigh/eth0", name).write_text(f"{value}\n"))


def stopped_at(said: Explanation) -> str:
    return next((stage.name for stage in said.stages if stage.mark is Mark.STOP), "")


def nft_load(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True, timeout=30)


def mend(said: Explanation, iptables: str = "iptables") -> None:
    """What it says, done."""
    command = said.verdict.remedy.removeprefix("run: ")
    assert command != said.verdict.remedy
    shell(command.replace("iptables ", f"{iptables} "))


async def test_nothing_stops_it(why: Asker, bridge_netfilter: str) -> None:
    with streets.listener(why.street.internet, SERVER_IP, WEB):
        said = await why(SERVER_IP, WEB)
    assert said.verdict.cause is Cause.NONE
    assert f"by uplink as {UPLINK_IP}" in said.verdict.sentence
    assert stopped_at(said) == ""
    assert (await why(SERVER_IP)).verdict.cause is Cause.NONE  # an echo


async def test_each_hears_of_its_own_packets(why: Asker) -> None:
    """Both to the same place at once: one gets through, the other is stopped."""
    with streets.listener(why.street.internet, SERVER_IP, WEB):
        through, stopped = await asyncio.gather(why(SERVER_IP, WEB), without_nat(why)(SERVER_IP, WEB))
    assert (through.verdict.cause, stopped.verdict.cause) == (Cause.NONE, Cause.NO_NAT)
    assert not any("the guest has no NAT" in stage.words for stage in through.stages)
    assert not any("the guest has NAT" in stage.words for stage in stopped.stages)


async def test_a_service_that_does_not_listen(why: Asker) -> None:
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.NOT_LISTENING, "answer")
    assert "TCP port 8080" in said.verdict.sentence
    udp = await why(SERVER_IP, WEB, protocol=Protocol.UDP)
    assert udp.verdict.cause is Cause.NOT_LISTENING


def without_nat(why: Asker) -> Asker:
    """The other guest's questions."""
    card = GuestLink(name="eth0", up=True, running=True, address="10.9.0.3")
    network = msgspec.structs.replace(why.network, links=(card,))
    return Asker(why.street, why.helper, network, why.instance, vm=3, nat=False)


async def test_no_nat(why: Asker, bridge_netfilter: str) -> None:
    for port in (WEB, 0):
        said = await without_nat(why)(SERVER_IP, port)
        assert (said.verdict.cause, stopped_at(said)) == (Cause.NO_NAT, "firewall")
        assert said.verdict.remedy == "banger vm set vm3 --nat"
        assert said.verdict.rule is not None
        assert "the guest has no NAT" in said.verdict.rule.rule


async def test_a_policy_of_another_table(why: Asker) -> None:
    nft_load("table inet other {\n chain way {\n type filter hook forward priority 5; policy drop;\n }\n}\n")
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.FIREWALL, "firewall")
    assert "the policy of chain way in table inet other" in said.verdict.sentence
    with streets.listener(why.street.internet, SERVER_IP, WEB):
        assert (await why(SERVER_IP, WEB)).verdict.cause is Cause.FIREWALL
        mend(said)  # what it says helps
        assert (await why(SERVER_IP, WEB)).verdict.cause is Cause.NONE
    nft_load("delete table inet other\n")


async def test_an_answer_that_is_dropped(why: Asker) -> None:
    nft_load(
        "table inet other {\n chain way {\n type filter hook forward priority 5; policy accept;\n"
        f' oifname "{BRIDGE}" counter drop comment "no way back"\n }}\n}}\n'
    )
    with streets.listener(why.street.internet, SERVER_IP, WEB):
        said = await why(SERVER_IP, WEB)
    nft_load("delete table inet other\n")
    assert said.verdict.cause is Cause.FIREWALL
    assert f"the answer of {SERVER_IP}" in said.verdict.sentence
    assert said.verdict.rule is not None
    assert said.verdict.rule.rule == f'oifname "{BRIDGE}" drop comment "no way back"'


@require("iptables")
async def test_a_chain_as_docker_makes_it(why: Asker) -> None:
    for words in (
        "-N DOCKER-USER",
        "-A DOCKER-USER -j RETURN",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-P FORWARD DROP",
    ):
        shell(f"iptables-nft {words}")
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.FIREWALL, "firewall")
    assert said.verdict.sentence.startswith("Docker drops the packets of vm2")
    assert "DOCKER-USER" in said.verdict.remedy
    with streets.listener(why.street.internet, SERVER_IP, WEB):
        mend(said, "iptables-nft")
        assert (await why(SERVER_IP, WEB)).verdict.cause is Cause.NONE
    shell("iptables-nft -P FORWARD ACCEPT")
    nft_load("delete table ip filter\n")


@require("iptables")
async def test_a_rule_of_iptables_legacy(why: Asker) -> None:
    """The kernel's trace does not show it; that the packet never came out of the hook does."""
    shell("iptables-legacy -A FORWARD -p tcp -j DROP")
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.FIREWALL_UNSEEN, "firewall")
    assert "iptables-legacy" in said.verdict.remedy


async def test_no_route(why: Asker) -> None:
    said = await why("203.0.113.9", WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.NO_ROUTE, "host route")
    why.network = msgspec.structs.replace(why.network, routes=(ON_LINK,))
    why.place.ip("route", "delete", "default")
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.GUEST_ROUTE, "guest route")
    assert f"ip route add default via {BRIDGE_IP}" in said.verdict.remedy


async def test_forwarding_switched_off(why: Asker) -> None:
    await why.helper.set_forwarding(False)
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.FORWARDING_OFF, "forwarding")


async def test_an_uplink_without_its_other_end_and_one_that_is_down(why: Asker) -> None:
    why.street.internet.ip("link", "set", "eth0", "down")
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.UPLINK_DOWN, "uplink")
    assert "uplink has no carrier" in said.verdict.sentence
    streets.ip("link", "set", "uplink", "down")
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.UPLINK_DOWN, "uplink")
    assert said.verdict.remedy == "ip link set uplink up"


async def test_a_neighbour_that_is_not_there(why: Asker) -> None:
    why.street.internet.ip("address", "delete", f"{SERVER_IP}/24", "dev", "eth0")
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.NO_ANSWER, "answer")


async def test_packets_that_leave_with_the_guests_own_address(why: Asker) -> None:
    table = marks.nft_table(why.instance)
    nft_load(f"flush chain inet {table} postrouting\n")
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.NO_MASQUERADE, "uplink")


async def test_the_hosts_own_services(why: Asker) -> None:
    said = await why(BRIDGE_IP, 9000)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.NOT_FOR_GUESTS, "firewall")
    said = await why(BRIDGE_IP, 9001)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.NOT_LISTENING, "answer")
    with streets.listener(None, "0.0.0.0", 9001):
        assert (await why(BRIDGE_IP, 9001)).verdict.cause is Cause.NONE
    assert (await why(BRIDGE_IP)).verdict.cause is Cause.NONE
    said = await why(UPLINK_IP, 9001)
    assert said.verdict.cause is Cause.NOT_FOR_GUESTS


async def test_another_guest(why: Asker, bridge_netfilter: str) -> None:
    said = await why("10.9.0.3", WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.ISOLATED, "firewall")
    assert "network_isolation" in said.verdict.remedy
    open_to_all = msgspec.structs.replace(SETTINGS, network_isolation=False)
    await why.street.with_settings(open_to_all).refresh()
    said = await why("10.9.0.3", WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.NOT_LISTENING, "answer")


async def test_a_guest_that_has_asked_for_the_neighbour_in_vain(why: Asker) -> None:
    """Its kernel fails all who wait, an attempt that begins now too: that says nothing of the way now."""
    open_to_all = msgspec.structs.replace(SETTINGS, network_isolation=False)
    await why.street.with_settings(open_to_all).refresh()
    neighbours(why.place, "mcast_solicit", 1)
    neighbours(why.place, "retrans_time_ms", 500)
    second = why.street.second
    second.ip("address", "delete", f"{second.address}/24", "dev", "eth0")
    with streets.packets_on(why.place.tap) as wire, why.place.open(socket.SOCK_DGRAM) as app:
        app.sendto(b"hello", (second.address, WEB))
        question = streets.arp(1, mac=why.place.mac, address=why.place.address, target=second.address)
        assert streets.arrives(wire, question)
        second.ip("address", "add", f"{second.address}/24", "dev", "eth0")
        why.attempt_s = streets.TIMEOUT_S  # it is refused before that, however late the kernel gives up
        said = await why(second.address, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.NOT_LISTENING, "answer")


async def test_taps_and_bridges(why: Asker) -> None:
    streets.ip("link", "set", why.place.tap, "nomaster")
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.TAP, "tap")
    streets.ip("link", "set", why.place.tap, "master", BRIDGE)
    streets.ip("link", "set", BRIDGE, "down")
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.BRIDGE, "bridge")
    streets.ip("link", "set", BRIDGE, "up")


async def test_another_mac(why: Asker) -> None:
    why.place.ip("link", "set", "eth0", "address", "06:00:00:00:00:99")
    said = await why(SERVER_IP, WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.SPOOFED, "firewall")


async def test_names(why: Asker) -> None:
    said = await why("www.example.org", WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.NO_DNS_ANSWER, "name")
    said = await why("www.example.org", WEB, names_problem="another program has port 53")
    assert "another program has port 53" in said.verdict.sentence
    why.network = msgspec.structs.replace(why.network, nameservers=("198.51.100.77",))
    said = await why("www.example.org", WEB)
    assert (said.verdict.cause, stopped_at(said)) == (Cause.WRONG_RESOLVER, "name")
    assert f"its resolver is {BRIDGE_IP}" in said.verdict.sentence
    why.network = msgspec.structs.replace(why.network, nameservers=())
    assert (await why("www.example.org", WEB)).verdict.cause is Cause.WRONG_RESOLVER
    why.network = msgspec.structs.replace(why.network, hosts={"www.example.org": SERVER_IP})
    assert (await why("WWW.example.org", WEB)).verdict.cause is Cause.NOT_LISTENING


async def test_a_question_that_another_table_drops(why: Asker) -> None:
    nft_load(
        "table ip other {\n chain way {\n type filter hook input priority 5; policy accept;\n"
        " udp dport 53 drop\n }\n}\n"
    )
    said = await why("www.example.org", WEB)
    mend(said)  # the question that banger's own server then hears nobody answers
    assert (await why("www.example.org", WEB)).verdict.cause is Cause.NO_DNS_ANSWER
    nft_load("delete table ip other\n")
    assert (said.verdict.cause, stopped_at(said)) == (Cause.FIREWALL, "name")


async def test_what_a_crash_leaves_is_found_and_removed(why: Asker, paths: Paths) -> None:
    flow = Flow(
        tap="tap-fc-2",
        guest="10.9.0.2",
        gateway=BRIDGE_IP,
        target=SERVER_IP,
        protocol=Protocol.TCP,
        port=WEB,
        source=61000,
    )
    token = await why.helper.begin_trace(flow)
    running = (await why.helper.observe(vms_dir=paths.vms_dir)).nft_tables
    assert not any(token in table for table in running)  # explained
    other = InProcessHelper(why.instance, paths)  # the next daemon's
    left = [table for table in (await other.observe(vms_dir=paths.vms_dir)).nft_tables if token in table]
    assert sorted(left) == [f"bridge {token}", f"inet {token}"]
    for table in left:
        await other.remove_nft_table(table)
    assert token not in {name for _, name in await nft.tables()}
    await other.close()
    assert await why.helper.end_trace(token) == ()
    assert await why.helper.end_trace("banger_nothing") == ()
