"""Names with real guests: the host asks, guests ask each other, a guest storms, the daemon and a monitor die.

One guest has the image's systemd, one the agent as its init. The host's resolver is a server of the test's in
the namespace, which `ip netns exec` gives an /etc/resolv.conf of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.capabilities import require
from tests.guest.instance import BOOT_TIMEOUT_S, SMALL, Instance, checked_instance, until
from tests.guest.test_net_why import resolver
from tests.unit.network.dnsasks import question

pytestmark = [pytest.mark.guest, require("dig")]

ONE, TWO = "names-one", "names-two"
WAIT_S = 120.0
WEB = r'read line; printf "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nfrom-two"'
STORM = r"""
use IO::Socket::INET;
my $to = IO::Socket::INET->new(Proto => "udp", PeerAddr => "172.16.0.1", PeerPort => 53) or die;
my $packet = pack "H*", "%s";
for my $n (1 .. 10000) {
    substr($packet, 0, 2) = pack "n", $n;
    $to->send($packet);
    $to->send(join "", map { chr rand 256 } 1 .. $n %% 90) if $n %% 50 == 0;
}
"""


@pytest.fixture(scope="module")
def banger() -> Iterator[Instance]:
    """Two guests that run and may reach each other."""
    settings = f"network_isolation = false\n{SMALL}"
    with checked_instance(settings, resolver="127.0.0.53") as made, resolver(made):
        starts = [
            made.start("vm", "run", "-d", "--name", ONE, "--nat"),
            made.start("vm", "run", "-d", "--name", TWO, "--init", "agent"),
        ]
        for start in starts:
            said = start.communicate(timeout=BOOT_TIMEOUT_S)
            assert start.returncode == 0, said
        yield made


def dig(banger: Instance, *words: str) -> str:
    return banger.run_in_netns("dig", "@127.0.0.1", "-p", "42069", *words).text


def address(banger: Instance, name: str) -> str:
    runtime = banger.show(name)["runtime"]
    assert isinstance(runtime, dict)
    return str(runtime["guest_ip"])


def inside(banger: Instance, name: str, *words: str) -> str:
    return banger.ok("vm", "exec", name, "--", *words).text


def test_the_host_asks_for_a_guest(banger: Instance) -> None:
    for name in (ONE, TWO):
        assert dig(banger, "+short", f"{name}.vm").strip() == address(banger, name)
        assert dig(banger, "+short", "-x", address(banger, name)).strip() == f"{name}.vm."
    assert "status: NOERROR" in dig(banger, f"{ONE}.vm", "AAAA")
    assert "status: NXDOMAIN" in dig(banger, "nobody.vm")
    assert "status: REFUSED" in dig(banger, "www.example.org")
    assert "127.0.0.1:42069: banger's daemon serves NAME.vm there" in banger.banger("doctor").text


def test_guests_find_each_other_by_name(banger: Instance) -> None:
    inside(
        banger,
        TWO,
        "sh",
        "-c",
        f"nohup systemd-socket-activate -a -l 8080 --inetd sh -c '{WEB}' >/dev/null 2>&1 &",
    )
    for name in (f"{TWO}.vm", TWO):
        assert inside(banger, ONE, "getent", "hosts", name).split() == [address(banger, TWO), f"{TWO}.vm"]
    assert inside(banger, TWO, "getent", "hosts", ONE).split()[0] == address(banger, ONE)
    fetch = ("curl", "-sS", "--retry", "8", "--retry-connrefused", f"http://{TWO}.vm:8080/")
    assert inside(banger, ONE, *fetch) == "from-two"


def test_other_names_are_for_guests_with_nat(banger: Instance) -> None:
    assert inside(banger, ONE, "getent", "ahostsv4", "www.example.org").split()[0] == "192.0.2.1"
    assert banger.banger("vm", "exec", TWO, "--", "getent", "hosts", "www.example.org").status == 2


def test_answers_go_on_while_a_guest_storms(banger: Instance) -> None:
    packet = question(f"{TWO}.vm").hex()
    asked = 0
    with banger.start("vm", "exec", ONE, "--", "perl", "-e", STORM % packet) as storm:
        while storm.poll() is None:
            assert inside(banger, TWO, "getent", "hosts", f"{ONE}.vm").split()[0] == address(banger, ONE)
            assert dig(banger, "+short", f"{TWO}.vm").strip() == address(banger, TWO)
            asked += 1
        assert storm.returncode == 0, storm.communicate()
    print(f"{asked} rounds meanwhile")
    assert inside(banger, ONE, "getent", "hosts", f"{TWO}.vm")


def test_names_outlive_the_daemon_and_not_their_vm(banger: Instance) -> None:
    os.kill(banger.daemon_pid(), signal.SIGKILL)
    banger.ok("vm", "list")
    assert dig(banger, "+short", f"{TWO}.vm").strip() == address(banger, TWO)
    assert inside(banger, ONE, "getent", "hosts", f"{TWO}.vm")
    pid = int((banger.vm_dir(TWO) / "monitor.pid").read_text().splitlines()[1].split()[0])
    os.kill(pid, signal.SIGKILL)
    until(lambda: "status: NXDOMAIN" in dig(banger, f"{TWO}.vm"), timeout_s=WAIT_S)
    assert banger.banger("vm", "exec", ONE, "--", "getent", "hosts", f"{TWO}.vm").status == 2
    banger.ok("vm", "stop", ONE)
    assert "status: NXDOMAIN" in dig(banger, f"{ONE}.vm")


def test_a_busy_port_is_told_and_hinders_no_vm(banger: Instance) -> None:
    banger.ok("daemon", "stop")
    script = """import socket, time
taken = socket.socket(type=socket.SOCK_DGRAM)
taken.bind(("127.0.0.1", 42069))
print(1, flush=True)
time.sleep(600)"""
    with subprocess.Popen(banger.argv(sys.executable, "-c", script), stdout=subprocess.PIPE) as taken:
        assert taken.stdout is not None
        assert taken.stdout.readline() == b"1\n"
        try:
            started = banger.ok("daemon", "start")
            assert "Traceback" not in started.stderr
            said = banger.ok("daemon", "status").text
            assert "names are not served on 127.0.0.1:42069" in said
            assert "has that port; set dns_listen" in said
            started = banger.ok("vm", "start", TWO)
            assert "warning: names are not served on 127.0.0.1:42069" in started.stderr
            assert banger.state(TWO) == "running"
        finally:
            taken.kill()
