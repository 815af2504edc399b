"""SPEC §4, NAT, with real guests: a second namespace is the internet, and a page in it the proof."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.instance import SMALL, Instance, Result, checked_instance, until

pytestmark = pytest.mark.guest

PAGE = "a page of the internet\n"
SERVER, UPLINK = "198.51.100.2", "198.51.100.1"
WEB = f"http://{SERVER}:8080/page"
BRIDGE_IP = "172.16.0.1"
SERVICE, ALLOWED = 9000, 9001
CURL = ("curl", "-sS", "--max-time", "60")
LOST = (*CURL, "--connect-timeout", "3")
"""For what nobody answers, not even with a no."""


@pytest.fixture(scope="module")
def banger() -> Iterator[Instance]:
    """As everywhere, with a port of the host that guests may use, and the internet."""
    with checked_instance(f"host_access = [{ALLOWED}]\n{SMALL}") as made:
        made.run_in_netns("sysctl", "-qw", "net.ipv4.ip_forward=0").require()
        with internet(made):
            yield made
            for vm in made.vms():
                made.ok("vm", "delete", str(vm["id"]))
        assert forwarding(made) == "0"


@contextlib.contextmanager
def internet(made: Instance) -> Iterator[None]:
    """It has no route to the guests' network; only what leaves with the host's address is answered."""
    name = f"banger-test-{secrets.token_hex(4)}"
    folder = made.home / "internet"
    folder.mkdir()
    (folder / "page").write_text(PAGE)

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, timeout=30)

    ip("netns", "add", name)
    servers: list[subprocess.Popen[bytes]] = []
    try:
        ip("-n", made.netns, "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", name)
        made.own_links.add("uplink")
        ip("-n", name, "address", "add", f"{SERVER}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", made.netns, "address", "add", f"{UPLINK}/24", "dev", "uplink")
        ip("-n", made.netns, "link", "set", "uplink", "up")
        ip("-n", made.netns, "route", "add", "default", "via", SERVER)
        places = ((name, 8080), (made.netns, SERVICE), (made.netns, ALLOWED))
        servers += [serve(netns, port, folder) for netns, port in places]
        for netns, port in places:
            until(lambda netns=netns, port=port: listens(netns, port), timeout_s=30)  # type: ignore[misc]
        yield
    finally:
        for server in servers:
            server.send_signal(signal.SIGKILL)
            server.wait()
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("-n", made.netns, "link", "delete", "uplink")
        made.own_links.discard("uplink")
        ip("netns", "delete", name)


def serve(netns: str, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """On every address of a namespace."""
    argv = ["ip", "netns", "exec", netns, sys.executable, "-m", "http.server", str(port)]
    return subprocess.Popen(
        [*argv, "--directory", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def listens(netns: str, port: int) -> bool:
    argv = ["ip", "netns", "exec", netns, "ss", "-Hltn", f"sport = :{port}"]
    return subprocess.run(argv, check=True, capture_output=True, timeout=30).stdout != b""


def forwarding(made: Instance) -> str:
    return made.run_in_netns("sysctl", "-n", "net.ipv4.ip_forward").require().text.strip()


def ruleset(made: Instance) -> str:
    return made.run_in_netns("nft", "list", "ruleset").require().text


def fetch(made: Instance, name: str, url: str = WEB) -> Result:
    return made.banger("vm", "exec", name, "--", *CURL, url)


def address_of(made: Instance, name: str) -> str:
    runtime = made.show(name)["runtime"]
    assert isinstance(runtime, dict)
    return str(runtime["guest_ip"])


def mac_of(made: Instance, name: str) -> str:
    return made.ok("vm", "exec", name, "--", "cat", "/sys/class/net/eth0/address").text.strip()


def sh(made: Instance, name: str, script: str) -> Result:
    return made.banger("vm", "exec", name, "--", "sh", "-c", script)


@pytest.fixture(scope="module")
def guests(banger: Instance) -> tuple[str, str]:
    """One with NAT, one without."""
    banger.ok("vm", "create", "--name", "with", "--nat")
    banger.ok("vm", "create", "--name", "without")
    return "with", "without"


def test_a_guest_with_nat_fetches_a_page_and_one_without_cannot(
    banger: Instance, guests: tuple[str, str]
) -> None:
    one, two = guests
    assert fetch(banger, one).require().text == PAGE
    refused = fetch(banger, two)
    assert refused.status == 7, refused  # curl's "could not connect": the firewall says no at once
    assert forwarding(banger) == "1"
    said = banger.ok("vm", "set", one, "--no-nat")
    assert "next start" not in said.stderr
    assert fetch(banger, one).status == 7
    banger.ok("vm", "set", two, "--nat")
    assert fetch(banger, two).require().text == PAGE
    banger.ok("vm", "set", two, "--no-nat")
    banger.ok("vm", "set", one, "--nat")
    assert fetch(banger, one).require().text == PAGE


def test_the_host_is_there_for_ping_and_host_access_alone(banger: Instance, guests: tuple[str, str]) -> None:
    for name in guests:
        assert fetch(banger, name, f"http://{BRIDGE_IP}:{ALLOWED}/page").require().text == PAGE
        for address in (BRIDGE_IP, UPLINK):
            assert fetch(banger, name, f"http://{address}:{SERVICE}/page").status == 7
        assert fetch(banger, name, f"http://{UPLINK}:{ALLOWED}/page").status == 7
        assert sh(banger, name, f"ping -nqc1 -W30 {BRIDGE_IP}").status == 0
        assert banger.run_in_netns("ping", "-nqc1", "-W30", address_of(banger, name)).status == 0


def test_a_guest_neither_reaches_another_nor_takes_its_place(
    banger: Instance, guests: tuple[str, str]
) -> None:
    one, two = guests
    victim, mac = address_of(banger, one), mac_of(banger, one)
    own, own_mac = address_of(banger, two), mac_of(banger, two)
    assert sh(banger, two, f"ping -nqc1 -W2 {victim}").status == 1
    assert sh(banger, two, f"ip route add {victim} via {BRIDGE_IP} && ping -nqc1 -W2 {victim}").status == 1
    sh(banger, two, f"ip route delete {victim}").require()
    # its address: beside the own one, and instead of it, to reach the host and the internet as the other
    sh(banger, two, f"ip address add {victim}/24 dev eth0").require()
    assert sh(banger, two, f"ping -nqc1 -W2 -I {victim} {BRIDGE_IP}").status == 1
    assert banger.banger("vm", "exec", two, "--", *LOST, "--interface", victim, WEB).status != 0
    neighbours = banger.run_in_netns("ip", "neighbour", "show", victim).text
    assert own_mac not in neighbours
    # its MAC as well
    sh(
        banger,
        two,
        f"ip link set eth0 down && ip link set eth0 address {mac} && ip link set eth0 up"
        f" && ip route replace default via {BRIDGE_IP}",
    ).require()
    assert sh(banger, two, f"ping -nqc1 -W2 -I {victim} {BRIDGE_IP}").status == 1
    assert sh(banger, two, f"ping -nqc1 -W2 -I {own} {BRIDGE_IP}").status == 1
    # and all the while
    assert fetch(banger, one).require().text == PAGE
    assert banger.run_in_netns("ping", "-nqc1", "-W30", victim).status == 0
    sh(
        banger,
        two,
        f"ip address delete {victim}/24 dev eth0; ip link set eth0 down && ip link set eth0 address {own_mac}"
        f" && ip link set eth0 up && ip route replace default via {BRIDGE_IP}",
    ).require()
    assert sh(banger, two, f"ping -nqc1 -W30 {BRIDGE_IP}").status == 0


def test_what_others_did_to_it_is_seen_and_mended(banger: Instance, guests: tuple[str, str]) -> None:
    one, _ = guests
    banger.run_in_netns("nft", "flush", "ruleset").require()
    banger.run_in_netns("nft", "add", "table", "ip", "theirs").require()
    banger.run_in_netns("sysctl", "-qw", "net.ipv4.ip_forward=0").require()
    seen = banger.banger("host", "audit")
    assert seen.status == 1
    assert "are missing" in seen.text
    assert "switched off" in seen.text
    banger.banger("host", "audit", "--fix").require()
    banger.ok("host", "audit")
    assert fetch(banger, one).require().text == PAGE
    assert "table ip theirs" in ruleset(banger)
    banger.run_in_netns("nft", "delete", "table", "ip", "theirs").require()


def test_rules_go_with_the_vm_and_by_the_mirror_alone(banger: Instance, guests: tuple[str, str]) -> None:
    one, two = guests
    address, other = address_of(banger, one), address_of(banger, two)
    assert address in ruleset(banger)
    banger.ok("vm", "stop", two)
    assert other not in ruleset(banger)
    assert address in ruleset(banger)
    folder = banger.vm_dir(one)
    os.kill(banger.daemon_pid(), signal.SIGKILL)
    for record in ("handles.json", "monitor.pid", "vsock.pid"):
        (folder / record).unlink(missing_ok=True)
    banger.ok("vm", "delete", one)
    assert address not in ruleset(banger)
    banger.ok("host", "audit")
    banger.ok("vm", "delete", two)
    assert ruleset(banger) == ""
    assert forwarding(banger) == "0"
