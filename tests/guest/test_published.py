"""Published ports of real guests, which have no NAT: with curl, before and after kill -9 of the daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from banger.system.process import read_pid_file
from tests.guest.instance import Instance, until

pytestmark = pytest.mark.guest

SERVICES = r"""
    serve() { setsid systemd-socket-activate -a -l "$1" --inetd sh -c "$2" </dev/null >/dev/null 2>&1 & }
    until [ "$address" ]; do address=$(ip -4 -o address show eth0 | sed 's/.*inet \([0-9.]*\).*/\1/'); done
    serve 127.0.0.1:8080 \
        'read line; printf "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n"'
    serve $address:9001 'exec perl -e "
        sysread STDIN, \$said, 6; syswrite STDOUT, \$said . q(banner); shutdown STDOUT, 1;
        open \$after, q(>), q(/run/after); print \$after \$_ while <STDIN>"'
    until ss -ltn | grep -q 127.0.0.1:8080 && ss -ltn | grep -q $address:9001; do :; done
"""
TALK = """
import socket, sys
with socket.create_connection(("127.0.0.1", 18081), timeout=60) as client:
    client.sendall(b"first ")
    got = b""
    while piece := client.recv(100):
        got += piece
    assert got == b"first banner", got
    client.sendall(b"and after its end")
    client.shutdown(socket.SHUT_WR)
"""
HOLD = """
import socket, sys
with socket.create_server((sys.argv[1], 18080)):
    print("ready", flush=True)
    sys.stdin.read()
"""
STAY = """
import socket
with socket.create_connection(("127.0.0.1", 18081), timeout=60) as client:
    client.sendall(b"hello ")
    got = b""
    while got != b"hello banner":
        got += client.recv(100)
    print("ready", flush=True)
    try:
        while client.recv(1):
            pass
    except ConnectionResetError:
        pass  # and never a timeout
"""


@pytest.fixture(scope="module")
def web(banger: Instance) -> str:
    banger.ok("vm", "run", "-d", "--name", "web", "-p", "18080:8080", "-p", "127.0.0.1:18081:9001/tcp")
    banger.ok("vm", "exec", "web", "sh", "-ec", SERVICES)
    return "web"


def fetch(banger: Instance, where: str = "127.0.0.1:18080") -> str:
    return banger.run_in_netns("curl", "-sS", "--max-time", "60", f"http://{where}/").require().text


def refused(banger: Instance, where: str = "127.0.0.1:18080") -> bool:
    return banger.run_in_netns("curl", "-sS", "--max-time", "60", f"http://{where}/").status == 7


def published(banger: Instance, name: str) -> list[dict[str, object]]:
    shown = json.loads(banger.ok("vm", "show", name, "--json").text)
    ports: list[dict[str, object]] = shown["runtime"]["published"]
    return ports


@contextmanager
def python(banger: Instance, script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Beside the test, in its namespace; it has said that it is ready."""
    running = subprocess.Popen(
        banger.argv(sys.executable, "-c", script, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        yield running
        running.communicate(timeout=60)
        assert running.returncode == 0
    finally:
        if running.poll() is None:
            running.kill()
            running.communicate()


def test_with_curl_before_and_after_kill_9_of_the_daemon(banger: Instance, web: str) -> None:
    assert fetch(banger) == "hi\n"
    assert banger.show(web)["spec"]["nat_enabled"] is False  # type: ignore[index]
    carrier = read_pid_file(f"{banger.paths.ports_dir}/ports.pid", role="ports")
    assert carrier is not None
    with python(banger, STAY):
        os.kill(banger.daemon_pid(), signal.SIGKILL)
        until(lambda: refused(banger), timeout_s=30)
    banger.ok("vm", "list")  # starts the next daemon
    assert fetch(banger) == "hi\n"
    after = read_pid_file(f"{banger.paths.ports_dir}/ports.pid", role="ports")
    assert after is not None
    assert after.pid != carrier.pid
    assert all(port["listening"] for port in published(banger, web))
    banger.ok("host", "audit")


def test_a_carrier_that_is_killed_is_replaced(banger: Instance, web: str) -> None:
    carrier = read_pid_file(f"{banger.paths.ports_dir}/ports.pid", role="ports")
    assert carrier is not None
    os.kill(carrier.pid, signal.SIGKILL)
    assert fetch(banger) == "hi\n"


def test_both_halves_and_a_service_on_the_guests_address_alone(banger: Instance, web: str) -> None:
    banger.run_in_netns(sys.executable, "-c", TALK).require()
    said = "until [ -s /run/after ]; do :; done; cat /run/after"
    assert banger.ok("vm", "exec", web, "sh", "-c", said).text == "and after its end"


def test_it_needs_no_address_in_the_guest(banger: Instance, web: str) -> None:
    banger.ok("vm", "exec", web, "ip", "link", "set", "eth0", "down")
    try:
        assert fetch(banger) == "hi\n"
    finally:
        banger.ok("vm", "exec", web, "ip", "link", "set", "eth0", "up")


def test_ports_come_and_go_while_it_runs(banger: Instance, web: str) -> None:
    said = banger.ok("vm", "publish", web, "8080", "[::1]:18080:8080").text.splitlines()
    chosen = next(line.split(":")[1] for line in said if not line.startswith(("127.0.0.1:1808", "[")))
    assert fetch(banger, f"127.0.0.1:{chosen}") == fetch(banger, "[::1]:18080") == "hi\n"
    banger.ok("vm", "unpublish", web, chosen, "[::1]:18080")
    assert refused(banger, f"127.0.0.1:{chosen}")
    assert refused(banger, "[::1]:18080")
    assert fetch(banger) == "hi\n"
    row = next(line for line in banger.ok("vm", "list").text.splitlines() if " web " in line)
    assert row.endswith("18080->8080, 18081->9001")


def test_a_port_in_use_is_refused_before_a_vm_is_made(banger: Instance, web: str) -> None:
    refusal = banger.banger("vm", "run", "--name", "second", "-d", "-p", "0.0.0.0:18080:80")
    assert refusal.status == 1
    assert "0.0.0.0:18080 is in use already by the VM web" in refusal.stderr
    with python(banger, HOLD, "127.0.0.2") as holder:
        refusal = banger.banger("vm", "publish", web, "127.0.0.2:18080:80")
        assert "127.0.0.2:18080 is in use already by python" in refusal.stderr
        assert f"(pid {holder.pid})" in refusal.stderr
        assert "published by the same VM" in banger.banger("vm", "publish", web, "0.0.0.0:18080:80").stderr
    assert {vm["name"] for vm in banger.vms()} == {web}
    assert len(published(banger, web)) == 2


def test_kept_over_stop_and_start_and_a_port_taken_meanwhile(banger: Instance, web: str) -> None:
    banger.ok("vm", "stop", web)
    assert refused(banger)
    assert not any(port.get("listening") for port in published(banger, web))
    with python(banger, HOLD, "127.0.0.1"):
        start = banger.banger("vm", "start", web)
        assert start.status == 1
        assert "127.0.0.1:18080 is in use already by python" in start.stderr
        assert banger.state(web) == "stopped"
    banger.ok("vm", "start", web)
    banger.ok("vm", "exec", web, "sh", "-ec", SERVICES)
    assert fetch(banger) == "hi\n"


def test_a_port_taken_while_there_was_no_daemon_is_said_and_can_be_had_again(
    banger: Instance, web: str
) -> None:
    banger.ok("daemon", "stop")
    with python(banger, HOLD, "127.0.0.1"):
        assert banger.state(web) == "running"
        lost, kept = published(banger, web)
        assert "127.0.0.1:18080 is in use already by python" in str(lost["problem"])
        assert kept["listening"]
        assert "(not now: 127.0.0.1:18080 is in use" in banger.ok("vm", "show", web).text
        audit = banger.banger("host", "audit")
        assert (audit.status, "127.0.0.1:18080" in audit.text) == (1, True)
    banger.ok("vm", "publish", web, "18080:8080")
    assert fetch(banger) == "hi\n"
    banger.ok("host", "audit")
