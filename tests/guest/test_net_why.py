"""`net why` with a real guest, and a second namespace as the internet: eight faults, each named by its cause.

The host's resolver is the test's (tests/unit/network/dnsasks.py) and finds every name at 192.0.2.1,
which is the internet's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.capabilities import require
from tests.guest.instance import BOOT_TIMEOUT_S, SMALL, Instance, checked_instance, until
from tests.guest.test_nat import internet

pytestmark = [pytest.mark.guest, require("iptables")]

VM = "asker"
NAME, ADDRESS = "www.example.org", "192.0.2.1"
SERVER, UPLINK, BRIDGE_IP = "198.51.100.2", "198.51.100.1", "172.16.0.1"
WEB = 8080


@pytest.fixture(scope="module")
def banger() -> Iterator[Instance]:
    with checked_instance(SMALL, resolver="127.0.0.53") as made:
        made.run_in_netns("sysctl", "-qw", "net.ipv4.ip_forward=0").require()
        with internet(made):
            made.ok("vm", "run", "-d", "--name", VM, "--nat", timeout_s=BOOT_TIMEOUT_S)
            yield made
            made.ok("vm", "delete", VM)


@contextlib.contextmanager
def resolver(banger: Instance) -> Iterator[None]:
    """The host's own, while it lasts."""
    argv = banger.argv(sys.executable, "-m", "tests.unit.network.dnsasks")
    with subprocess.Popen(argv) as upstream:
        try:
            # banger's own server has a port 53 there, too
            until(lambda: b"127.0.0.53:53 " in banger.run_in_netns("ss", "-Hlun").stdout, timeout_s=60)
            yield
        finally:
            upstream.kill()


def why(banger: Instance, host: str, *, vm: str = VM) -> dict[str, Any]:
    done = banger.banger("net", "why", vm, host, "--json")
    assert done.status in (0, 1), done.stderr
    said: dict[str, Any] = json.loads(done.text)
    assert said["through"] is (done.status == 0)
    assert "_why" not in banger.run_in_netns("nft", "list", "tables").text
    said["text"] = json.dumps(said, indent=1)  # whole, where an assertion shows it
    return said


def inside(banger: Instance, script: str) -> None:
    banger.ok("vm", "exec", VM, "--", "sh", "-ec", script)


def outside(banger: Instance, commands: str) -> None:
    banger.run_in_netns("sh", "-ec", commands).require()


def mend(banger: Instance, said: dict[str, Any], iptables: str = "iptables") -> None:
    """What it says, done by whom it is root's already."""
    command = said["remedy"].removeprefix("run: ")
    assert command != said["remedy"]
    outside(banger, command.replace("sudo ", "").replace("iptables ", f"{iptables} "))


def stop(said: dict[str, Any]) -> str:
    return next((stage["name"] for stage in said["stages"] if stage["mark"] == "stops here"), "")


def test_nothing_stops_it(banger: Instance) -> None:
    said = why(banger, f"{SERVER}:{WEB}")
    assert (said["cause"], stop(said)) == ("none", ""), said["text"]
    assert f"by uplink as {UPLINK}" in said["sentence"]
    assert why(banger, BRIDGE_IP)["cause"] == "none"
    shown = banger.ok("net", "why", VM, SERVER).text
    assert "stops here" not in shown
    with resolver(banger):
        inside(banger, "true")
        said = why(banger, f"{NAME}:{WEB}")
    assert said["address"] == ADDRESS
    assert f"{NAME} is {ADDRESS}, says {BRIDGE_IP}" in [stage.get("words") for stage in said["stages"]]


def test_fault_1_no_nat(banger: Instance) -> None:
    banger.ok("vm", "set", VM, "--no-nat")
    said = why(banger, f"{SERVER}:{WEB}")
    by_name = why(banger, NAME)
    banger.ok("vm", "set", VM, "--nat")
    assert (said["cause"], said["remedy"]) == ("no_nat", f"banger vm set {VM} --nat"), said["text"]
    assert by_name["cause"] == "no_nat", by_name["text"]


def test_fault_2_a_forward_policy_of_another_table(banger: Instance) -> None:
    table = "table inet other { chain way { type filter hook forward priority 5; policy drop; }; }"
    outside(banger, f"nft '{table}'")
    said = why(banger, f"{SERVER}:{WEB}")
    assert (said["cause"], stop(said)) == ("firewall", "firewall"), said["text"]
    assert said["rule"] == {"family": "inet", "table": "other", "chain": "way", "verdict": "drop"}
    mend(banger, said)
    assert why(banger, f"{SERVER}:{WEB}")["through"]
    outside(banger, "nft delete table inet other")


def test_fault_3_a_chain_as_docker_makes_it(banger: Instance) -> None:
    outside(
        banger,
        "iptables-nft -N DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN; "
        "iptables-nft -A FORWARD -j DOCKER-USER; iptables-nft -P FORWARD DROP",
    )
    said = why(banger, f"{SERVER}:{WEB}")
    assert (said["cause"], stop(said)) == ("firewall", "firewall"), said["text"]
    assert said["sentence"].startswith(f"Docker drops the packets of {VM}")
    assert said["remedy"].startswith("run: sudo iptables -I DOCKER-USER -i br-fc -j ACCEPT")
    mend(banger, said, "iptables-nft")
    assert why(banger, f"{SERVER}:{WEB}")["through"]
    outside(banger, "nft delete table ip filter")


def test_fault_4_no_route(banger: Instance) -> None:
    outside(banger, f"ip route delete default via {SERVER}")
    said = why(banger, f"{ADDRESS}:{WEB}")
    outside(banger, f"ip route add default via {SERVER}")
    assert (said["cause"], stop(said)) == ("no_route", "host route"), said["text"]
    inside(banger, "ip route delete default")
    said = why(banger, f"{ADDRESS}:{WEB}")
    assert (said["cause"], stop(said)) == ("guest_route", "guest route"), said["text"]
    inside(banger, said["remedy"].partition(" -- ")[2])


def test_fault_5_no_dns_answer(banger: Instance) -> None:
    said = why(banger, f"{NAME}:{WEB}")
    assert (said["cause"], stop(said)) == ("no_dns_answer", "name"), said["text"]
    assert "host's own resolver" in said["sentence"]


def test_fault_6_a_wrong_resolver(banger: Instance) -> None:
    inside(banger, "cp /etc/resolv.conf /run/resolv.conf; echo nameserver 198.51.100.77 > /etc/resolv.conf")
    said = why(banger, f"{NAME}:{WEB}")
    inside(banger, "cat /run/resolv.conf > /etc/resolv.conf")
    assert (said["cause"], stop(said)) == ("wrong_resolver", "name"), said["text"]
    assert "198.51.100.77" in said["sentence"]
    assert BRIDGE_IP in said["sentence"]


def test_fault_7_a_service_that_does_not_listen(banger: Instance) -> None:
    said = why(banger, f"{SERVER}:8081")
    assert (said["cause"], stop(said)) == ("not_listening", "answer"), said["text"]


def test_fault_8_an_uplink_that_is_down(banger: Instance) -> None:
    outside(banger, "ip link set uplink down")
    said = why(banger, f"{SERVER}:{WEB}")
    outside(banger, said["remedy"])
    outside(banger, f"ip route add default via {SERVER}")
    assert (said["cause"], stop(said)) == ("uplink_down", "uplink"), said["text"]
    assert why(banger, f"{SERVER}:{WEB}")["through"]


def test_what_is_no_place_for_a_guest(banger: Instance) -> None:
    done = banger.banger("net", "why", VM, "2001:db8::1")
    assert done.status == 1
    assert "guests have no IPv6" in done.stderr
    said = why(banger, "172.16.0.77")
    assert said["sentence"] == "no VM that runs has the address 172.16.0.77", said["text"]
    banger.ok("vm", "create", "--no-start", "--name", "resting")
    done = banger.banger("net", "why", "resting", SERVER)
    assert "is not running" in done.stderr
    banger.ok("vm", "delete", "resting")


def test_a_daemon_killed_meanwhile_leaves_nothing(banger: Instance) -> None:
    def tables() -> str:
        return banger.run_in_netns("nft", "list", "tables").text

    pid = banger.daemon_pid()
    with banger.start("net", "why", VM, "198.51.100.77:80") as asking:  # nobody's: three seconds
        until(lambda: "_why" in tables(), timeout_s=30)
        os.kill(pid, signal.SIGKILL)
        asking.communicate(timeout=60)
        assert asking.returncode == 1
    assert "_why" in tables()
    banger.ok("vm", "list")  # the next daemon
    assert "_why" not in tables()
    banger.ok("host", "audit")
    assert why(banger, f"{SERVER}:{WEB}")["through"]
