"""`vm ports`, and the guest's own figures in `vm stats` and `vm health`, of a real guest."""

from __future__ import annotations

import json

import pytest

from tests.guest.instance import Instance, until

pytestmark = pytest.mark.guest


Listeners = dict[tuple[str, str, int], dict[str, object]]


def ports(banger: Instance, guest: str) -> Listeners:
    said = json.loads(banger.ok("vm", "ports", guest, "--json").text)
    return {(one["protocol"], one["address"], one["port"]): one for one in said["ports"]}


def test_sshd_is_seen_with_its_process_and_where_it_is(banger: Instance, guest: str) -> None:
    key = ("tcp", "0.0.0.0", 22)
    until(lambda: key in ports(banger, guest), timeout_s=120)
    seen = ports(banger, guest)
    ssh = seen[key]
    assert (ssh["process"], ssh["endpoint"]) == ("sshd", "shared-guest.vm:22")
    assert "url" not in ssh
    assert ("tcp", "::", 22) in seen
    before = banger.show(guest)["last_touched_at"]
    banger.ok("vm", "ports", guest)
    assert banger.show(guest)["last_touched_at"] == before


def test_links_of_what_speaks_http(banger: Instance, guest: str) -> None:
    """The image has git's daemon, and systemd makes a web server of a line of shell."""
    script = r"""
        systemd-run -q --unit=web --collect -p DynamicUser=no systemd-socket-activate -a -l 8080 --inetd \
            sh -c 'read line; printf "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n"'
        systemd-run -q --unit=local --collect systemd-socket-activate -l 127.0.0.1:9001 --inetd -a cat
        systemd-run -q --unit=git --collect git daemon --listen=0.0.0.0 --port=9418
    """
    banger.ok("vm", "exec", guest, "sh", "-ec", script)
    wanted = {("tcp", "::", 8080), ("tcp", "127.0.0.1", 9001), ("tcp", "0.0.0.0", 9418)}
    until(lambda: wanted <= ports(banger, guest).keys(), timeout_s=120)
    seen = ports(banger, guest)
    web = seen["tcp", "::", 8080]
    assert (web["endpoint"], web["url"]) == ("shared-guest.vm:8080", "http://shared-guest.vm:8080/")
    assert "endpoint" not in seen["tcp", "127.0.0.1", 9001]
    git = seen["tcp", "0.0.0.0", 9418]
    assert (git["endpoint"], "url" in git) == ("shared-guest.vm:9418", False)
    assert str(git["process"]).startswith("git")
    table = banger.ok("vm", "ports", guest).text.splitlines()
    assert table[0].split() == ["PROTO", "LISTENS", "ON", "PORT", "PROCESS", "PID", "ADDRESS", "LINK"]
    assert any(line.endswith("shared-guest.vm:8080  http://shared-guest.vm:8080/") for line in table)


def test_stats_and_health_have_the_guests_figures(banger: Instance, guest: str) -> None:
    (stats,) = json.loads(banger.ok("vm", "stats", guest, "--json").text)
    figures = stats["guest"]
    assert 150 << 10 < figures["memory_total_kib"] <= 256 << 10
    assert 0 < figures["memory_available_kib"] < figures["memory_total_kib"]
    assert 0 < figures["root_free_bytes"] < figures["root_total_bytes"]
    assert 0 < figures["work_free_bytes"] < figures["work_total_bytes"] <= 1 << 30
    health = json.loads(banger.ok("vm", "health", guest, "--json").text)
    assert health["healthy"] is True
    assert health["memory_total_kib"] == figures["memory_total_kib"]
    assert health["uptime_s"] >= figures["uptime_s"]
    assert " of " in banger.ok("vm", "stats", guest).text.splitlines()[1]


def test_a_dead_vm_has_none(banger: Instance) -> None:
    banger.ok("vm", "create", "--name", "asleep", "--no-start")
    (stats,) = json.loads(banger.ok("vm", "stats", "asleep", "--json").text)
    assert "guest" not in stats
    refused = banger.banger("vm", "ports", "asleep")
    assert (refused.status, refused.stderr.splitlines()[0]) == (
        1,
        "banger: VM asleep is not running: it is created",
    )
    banger.ok("vm", "delete", "asleep")
