"""SPEC §4, NAT, on real tables: what a guest reaches, and what it cannot, however it tries."""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import pytest

from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.helper import marks
from banger.helper.inprocess import InProcessHelper
from banger.model.records import VMRecord, VMRuntime, VMSpec
from banger.model.states import VMState
from banger.network.firewall import FORWARDING_KEY, Firewall
from banger.network.surroundings import who_forwards
from banger.store.database import Database
from banger.store.settings import SettingTable
from banger.system import nft
from tests.capabilities import require
from tests.host import streets
from tests.host.firewalls import shell
from tests.host.streets import (
    BRIDGE,
    BRIDGE_IP,
    SERVER_IP,
    SILENCE_S,
    UPLINK_IP,
    Place,
    arrives,
    reaches,
    stays_away,
)

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("netns", "nft")]

MOMENT = datetime(2026, 11, 21, tzinfo=UTC)
WEB, SERVICE, ALLOWED = 8080, 9000, 9001
SETTINGS = Settings(bridge_name=BRIDGE, bridge_ip=BRIDGE_IP, cidr=24, host_access=(ALLOWED,))


def record_of(number: int, *, nat: bool, tap: str = "") -> VMRecord:
    return VMRecord(
        id=f"{number:064x}",
        name=f"vm{number}",
        image_id="i",
        state=VMState.RUNNING,
        created_at=MOMENT,
        updated_at=MOMENT,
        last_touched_at=MOMENT,
        spec=VMSpec(nat_enabled=nat),
        runtime=VMRuntime(guest_ip=f"10.9.0.{number}", tap_device=tap or f"tap-fc-{number}"),
    )


@dataclass
class Street:
    """Two guests, one of them with NAT, and the internet."""

    first: Place
    second: Place
    internet: Place
    firewall: Firewall
    helper: InProcessHelper
    before: SettingTable
    records: list[VMRecord] = field(default_factory=list)

    async def nat(self, *numbers: int) -> None:
        self.records[:] = [record_of(number, nat=number in numbers) for number in (2, 3)]
        await self.firewall.refresh()

    def with_settings(self, settings: Settings) -> Firewall:
        return Firewall(self.helper, settings, records=lambda: self.records, before=self.before)


@pytest.fixture
async def before(paths: Paths) -> AsyncIterator[SettingTable]:
    database = await Database.open(paths.database)
    yield SettingTable(database)
    await database.close()


@pytest.fixture
async def places(helper: InProcessHelper, instance: str) -> AsyncIterator[tuple[Place, Place, Place]]:
    await helper.ensure_bridge(BRIDGE, address=BRIDGE_IP, prefix=24)
    with streets.internet() as internet, streets.guest(2, instance) as one, streets.guest(3, instance) as two:
        yield one, two, internet
    await helper.delete_bridge(BRIDGE)


@pytest.fixture
async def street(
    places: tuple[Place, Place, Place], helper: InProcessHelper, before: SettingTable
) -> AsyncIterator[Street]:
    one, two, internet = places
    await helper.set_forwarding(False)  # a new namespace takes after the host
    records: list[VMRecord] = []
    firewall = Firewall(helper, SETTINGS, records=lambda: records, before=before)
    made = Street(one, two, internet, firewall, helper, before, records)
    await made.nat(2)
    yield made
    await firewall.remove()


@pytest.fixture(params=["plain", "br_netfilter"])
def bridge_netfilter(request: pytest.FixtureRequest, netns: None) -> str:
    """Docker and Kubernetes have bridged packets pass through the IP chains too."""
    value = "1" if request.param == "br_netfilter" else "0"
    for name in ("iptables", "arptables", "ip6tables"):
        try:
            with open(f"/proc/sys/net/bridge/bridge-nf-call-{name}", "w", encoding="ascii") as file:
                file.write(value)
        except FileNotFoundError:
            assert value == "0" or not subprocess.run(["modprobe", "br_netfilter"], check=False).returncode
    return str(request.param)


async def test_with_nat_a_guest_reaches_the_internet_and_without_it_does_not(
    street: Street, bridge_netfilter: str
) -> None:
    with streets.listener(street.internet, SERVER_IP, WEB) as web:
        with street.first.open() as made:
            made.connect((SERVER_IP, WEB))
            there, (seen, _) = web.accept()
            there.close()
        assert seen == UPLINK_IP  # leaves with the host's address
        with street.second.open() as made, pytest.raises(OSError) as refused:
            made.connect((SERVER_IP, WEB))
        assert refused.value.errno == errno.EHOSTUNREACH  # and is told at once
        await street.nat(3)
        assert not reaches(street.first, SERVER_IP, WEB)
        assert reaches(street.second, SERVER_IP, WEB)


async def test_of_the_host_only_ping_dns_and_host_access_are_there(
    street: Street, bridge_netfilter: str
) -> None:
    with (
        streets.listener(None, "0.0.0.0", SERVICE),
        streets.listener(None, "0.0.0.0", ALLOWED),
        streets.listener(None, "0.0.0.0", 53),
        streets.listener(None, "0.0.0.0", 53, udp=True) as names,
        streets.listener(None, "0.0.0.0", SERVICE, udp=True) as service,
        streets.listener(None, "0.0.0.0", 67, udp=True) as dhcp,
    ):
        for who in (street.first, street.second):
            seen = {
                (address, port): reaches(who, address, port)
                for address in (BRIDGE_IP, UPLINK_IP)
                for port in (SERVICE, ALLOWED, 53)
            }
            assert {where for where, answered in seen.items() if answered} == {
                (BRIDGE_IP, ALLOWED),
                (BRIDGE_IP, 53),
            }
            assert streets.asks(who, names, address=BRIDGE_IP, port=53)
            with who.open(socket.SOCK_DGRAM) as made:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                made.sendto(b"hello", (UPLINK_IP, 53))
                made.sendto(b"hello", (BRIDGE_IP, SERVICE))
                made.sendto(b"hello", ("10.9.0.255", SERVICE))
                made.sendto(b"hello", ("255.255.255.255", 67))
            assert stays_away(names, b"hello")
            assert stays_away(service, b"hello")
            assert stays_away(dhcp, b"hello")
            assert streets.answers_ping(who, BRIDGE_IP)
        # what the host opens is answered
        with (
            streets.listener(street.second, "0.0.0.0", SERVICE) as there,
            streets.quick(socket.AF_INET, socket.SOCK_STREAM) as made,
        ):
            made.connect((street.second.address, SERVICE))
            there.accept()[0].close()


async def test_guests_reach_each_other_only_without_isolation(street: Street, bridge_netfilter: str) -> None:
    with streets.listener(street.second, "0.0.0.0", SERVICE):
        assert not reaches_or_waits(street.first, street.second.address)
        # by way of the gateway, past the bridge's own deliveries
        street.first.ip("route", "add", street.second.address, "via", BRIDGE_IP)
        assert not reaches_or_waits(street.first, street.second.address)
        street.first.ip("route", "delete", street.second.address)
        street.first.ip("neighbour", "flush", "all")
        await street.with_settings(msgspec.structs.replace(SETTINGS, network_isolation=False)).refresh()
        assert reaches(street.first, street.second.address, SERVICE)


def reaches_or_waits(who: Place, address: str) -> bool:
    """Nobody says no where not even ARP gets through."""
    with who.open() as made:
        made.settimeout(SILENCE_S)
        try:
            made.connect((address, SERVICE))
        except OSError:
            return False
        return True


async def test_a_guest_cannot_speak_as_another(street: Street, bridge_netfilter: str) -> None:
    """Frames as no kernel of a guest would send them: none is seen by the host or by the other guest."""
    one, two = street.first, street.second
    gateway = streets.ip("-j", "link", "show", BRIDGE).split('"address":"')[1][:17]
    everybody, lldp = "ff:ff:ff:ff:ff:ff", "01:80:c2:00:00:0e"
    mark = b"forged"
    honest = streets.ipv4(one.address, BRIDGE_IP, b"honest")
    frames = {
        "another's address": streets.ethernet(
            gateway, one.mac, 0x0800, payload=streets.ipv4(two.address, BRIDGE_IP, mark)
        ),
        "no address yet": streets.ethernet(
            everybody, one.mac, 0x0800, payload=streets.ipv4("0.0.0.0", "255.255.255.255", mark)
        ),
        "the gateway's address": streets.ethernet(
            gateway, one.mac, 0x0800, payload=streets.ipv4(BRIDGE_IP, BRIDGE_IP, mark)
        ),
        "another's MAC": streets.ethernet(
            gateway, two.mac, 0x0800, payload=streets.ipv4(one.address, BRIDGE_IP, mark)
        ),
        "both": streets.ethernet(
            gateway, two.mac, 0x0800, payload=streets.ipv4(two.address, BRIDGE_IP, mark)
        ),
        "to the bridge itself": streets.ethernet(
            lldp, two.mac, 0x0800, payload=streets.ipv4(two.address, BRIDGE_IP, mark)
        ),
        "LLDP": streets.ethernet(lldp, two.mac, 0x88CC, payload=mark),
        "IPv6": streets.ethernet("33:33:00:00:00:01", one.mac, 0x86DD, payload=b"\x60" + bytes(39) + mark),
        "a VLAN": streets.ethernet(
            gateway, one.mac, 0x8100, payload=b"\x00\x00\x08\x00" + streets.ipv4(one.address, BRIDGE_IP, mark)
        ),
        "a VLAN with another's address": streets.ethernet(
            gateway, one.mac, 0x8100, payload=b"\x00\x05\x08\x00" + streets.ipv4(two.address, BRIDGE_IP, mark)
        ),
        "straight to the guest": streets.ethernet(
            two.mac, one.mac, 0x0800, payload=streets.ipv4(one.address, two.address, mark)
        ),
        "of the host's": streets.ethernet(
            two.mac, gateway, 0x0800, payload=streets.ipv4(BRIDGE_IP, two.address, mark)
        ),
    }
    for what, (mac, address) in {
        "ARP for the other": (one.mac, two.address),
        "ARP for the gateway": (one.mac, BRIDGE_IP),
        "ARP with the other's MAC": (two.mac, one.address),
        "a probe": (one.mac, "0.0.0.0"),
    }.items():
        for operation in (1, 2):
            body = streets.arp(operation, mac=mac, address=address, target=address) + mark
            frames[f"{what}, {operation}"] = streets.ethernet(everybody, one.mac, 0x0806, payload=body)
    with one.raw() as wire, two.raw() as other, streets.packets_on(BRIDGE) as host:
        wire.send(streets.ethernet(gateway, one.mac, 0x0800, payload=honest))
        assert arrives(host, b"honest")
        for frame in frames.values():
            wire.send(frame)
        seen = [name for name, sock in (("host", host), ("guest", other)) if not stays_away(sock, mark)]
        assert seen == []
        # no MAC was learned on a port that is not its guest's
        known = streets.ip("-j", "neighbour")  # of the host
        assert f'"dst":"{two.address}","dev":"{BRIDGE}","lladdr":"{one.mac}"' not in known
        learned = streets.bridge("fdb", "show", "dev", one.tap)
        assert two.mac not in learned
        assert gateway not in learned


async def test_a_frame_for_one_guest_is_not_shown_to_another(street: Street) -> None:
    """A bridge that does not know where a MAC is asks all its ports."""
    streets.ip("neighbour", "replace", street.second.address, "lladdr", street.second.mac, "dev", BRIDGE)
    with street.first.raw() as first, street.second.raw() as second:
        with streets.quick(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.sendto(b"for the second", (street.second.address, 5))
        assert arrives(second, b"for the second")
        assert stays_away(first, b"for the second")


async def test_a_tap_that_no_vm_has_gets_nothing(street: Street) -> None:
    street.records.pop()  # the second guest's
    await street.firewall.refresh()
    with streets.listener(None, BRIDGE_IP, ALLOWED), streets.packets_on(BRIDGE) as host:
        assert not reaches_or_waits(street.second, BRIDGE_IP)
        with street.second.raw() as wire:
            wire.send(
                streets.ethernet(
                    "ff:ff:ff:ff:ff:ff",
                    street.second.mac,
                    0x0800,
                    payload=streets.ipv4(street.second.address, BRIDGE_IP, b"idle"),
                )
            )
        assert stays_away(host, b"idle")


async def test_switching_nat_off_ends_what_is_established(street: Street) -> None:
    with streets.listener(street.internet, SERVER_IP, WEB) as web, street.first.open() as made:
        made.connect((SERVER_IP, WEB))
        there, _ = web.accept()
        with there:
            there.settimeout(streets.TIMEOUT_S)
            made.send(b"one")
            assert there.recv(16) == b"one"
            await street.nat()
            there.send(b"down")
            assert stays_away(made, b"down")
            made.send(b"up")
            assert stays_away(there, b"up")
            await street.nat(2)  # nothing was lost but time
            assert made.recv(16) == b"down"
            assert there.recv(16) == b"up"


async def test_a_replacement_lets_nothing_slip_and_loses_nothing(street: Street) -> None:
    """While the table is replaced over and over, an allowed flow goes on and a forbidden one stays so."""
    with (
        streets.listener(None, "0.0.0.0", 53, udp=True) as names,
        streets.listener(None, "0.0.0.0", SERVICE, udp=True) as service,
        street.first.open(socket.SOCK_DGRAM) as made,
    ):
        for number in range(40):
            if number % 2 == 0:
                await street.nat(*((2, 3) if number % 4 else (2,)))
            made.sendto(f"ask {number}".encode(), (BRIDGE_IP, 53))
            made.sendto(b"slip", (BRIDGE_IP, SERVICE))
            assert names.recv(64) == f"ask {number}".encode()
        assert stays_away(service, b"slip")


async def test_a_port_of_the_hosts_that_docker_leads_elsewhere_is_no_way_in(street: Street) -> None:
    """DNAT comes before the filters: the packet is on its way to a container by then."""
    await nft.apply(
        "table ip dock {\n chain prerouting {\n  type nat hook prerouting priority dstnat;\n"
        f"  fib daddr type local tcp dport {SERVICE} dnat to {SERVER_IP}:{WEB}\n }}\n}}\n"
    )
    try:
        with streets.listener(street.internet, SERVER_IP, WEB):
            for address in (BRIDGE_IP, UPLINK_IP):
                assert not reaches(street.first, address, SERVICE)
            assert reaches(street.first, SERVER_IP, WEB)
    finally:
        await nft.apply("delete table ip dock\n")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("delete table inet {0}", "are missing"),
        ("delete table bridge {0}", "are missing"),
        ("flush chain bridge {0} from_tap", "have been changed by another program"),
        ("add element inet {0} nat {{ 10.9.0.3 }}", "have been changed by another program"),
        ("insert rule inet {0} to_host accept", "have been changed by another program"),
        ("flush ruleset", "are missing"),
    ],
)
async def test_drift_is_seen_and_mended_and_others_tables_stay(
    street: Street, instance: str, damage: str, problem: str
) -> None:
    assert await street.firewall.drift() == ("", "")
    await nft.apply(damage.format(marks.nft_table(instance)) + "\ntable ip theirs { }\n")
    try:
        assert await street.firewall.drift() == (problem, "")
        await street.firewall.mend()
        assert await street.firewall.drift() == ("", "")
        assert ("ip", "theirs") in await nft.tables()
    finally:
        await nft.apply("delete table ip theirs\n")


async def test_forwarding_is_switched_on_for_nat_alone_and_put_back(street: Street, paths: Paths) -> None:
    helper, before = street.helper, street.before
    await street.firewall.remove()
    assert not await helper.forwarding()
    assert (await helper.observe(vms_dir=paths.vms_dir)).nft_tables == ()
    await street.nat()
    assert not await helper.forwarding()
    assert before.get(FORWARDING_KEY) is None
    await street.nat(2)
    assert await helper.forwarding()
    assert before.get(FORWARDING_KEY) == "0"
    await helper.set_forwarding(False)
    assert await street.firewall.drift() == ("", "is switched off, and VMs with NAT run")
    await street.firewall.mend()
    assert await helper.forwarding()
    await street.firewall.remove()
    assert not await helper.forwarding()
    assert before.get(FORWARDING_KEY) is None
    await helper.set_forwarding(True)  # somebody else's wish, from before the first VM
    await street.nat(2)
    await street.firewall.remove()
    assert await helper.forwarding()
    await helper.set_forwarding(False)


THEIRS = "nft add table ip theirs; nft add chain ip theirs"


@pytest.mark.parametrize(
    ("others", "gone", "needed_by"),
    [
        (
            "ip link add docker0 type bridge; ip addr add 172.30.0.1/24 dev docker0",
            "ip link delete docker0",
            "bridge docker0",
        ),
        (
            f"{THEIRS} c '{{ type nat hook postrouting priority 0; }}'; nft add rule ip theirs c masquerade",
            "nft delete table ip theirs",
            "another firewall (table ip theirs)",
        ),
        (
            "iptables-nft -t nat -A POSTROUTING -o uplink -j MASQUERADE",
            "nft delete table ip nat",
            "iptables (table ip nat)",
        ),
        ("ip link add br-lan type bridge", "ip link delete br-lan", ""),
        (f"{THEIRS} c '{{ type filter hook forward priority 0; }}'", "nft delete table ip theirs", ""),
    ],
)
@require("iptables")
async def test_forwarding_that_others_have_come_to_need_stays_on(
    street: Street, others: str, gone: str, needed_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What banger switched on is theirs from then on, and it says so once."""
    helper, before = street.helper, street.before
    firewall = Firewall(helper, SETTINGS, records=lambda: street.records, before=before, others=who_forwards)
    await firewall.mend()
    assert before.get(FORWARDING_KEY) == "0"
    shell(others)
    await firewall.remove()
    assert await helper.forwarding() == bool(needed_by)
    assert before.get(FORWARDING_KEY) is None
    said = [record.getMessage() for record in caplog.records if "stays on" in record.getMessage()]
    assert said == ([f"net.ipv4.ip_forward stays on: needed by {needed_by}"] if needed_by else [])
    await firewall.refresh()  # the next VM, and its end
    await firewall.remove()
    assert await helper.forwarding() == bool(needed_by)
    shell(gone)
    await helper.set_forwarding(False)


async def test_the_last_of_two_instances_puts_forwarding_back(street: Street, paths: Paths) -> None:
    other = InProcessHelper("f" * 16, paths)
    database = await Database.open(f"{paths.state_dir}/other.db")
    theirs = Firewall(
        other,
        msgspec.structs.replace(SETTINGS, bridge_name="br-o", bridge_ip="10.8.0.1"),
        records=lambda: [record_of(9, nat=True, tap="tap-fc-o")],
        before=SettingTable(database),
    )
    try:
        await theirs.refresh()
        await street.firewall.remove()
        assert await other.forwarding()
        await theirs.remove()
        assert not await other.forwarding()
    finally:
        await other.close()
        await database.close()
