"""`vm ports`, and the guest's own figures in `vm stats` and `vm health`, of a real guest."""

from __future__ import annotations

import json

import pytest

from tests.guest.instance import BOOT_TIMEOUT_S, Instance, until

pytestmark = pytest.mark.guest


Listeners = dict[tuple[str, str, int], dict[str, object]]


def ports(banger: Instance, guest: str) -> Listeners:
    said = json.loads(banger.ok("vm", "ports", guest, "--json").text)
    return {(one["protocol"], one["address"], one["port"]): one for one in said["ports"]}


def named(banger: Instance, guest: str, *wanted: tuple[str, str, int]) -> Listeners:
    """All ports, when those are there with their processes; the guest looks for these for two seconds."""
    found = ports(banger, guest)
    return found if all("process" in found.get(one, {}) for one in wanted) else {}


def test_sshd_is_seen_with_its_process_and_where_it_is(banger: Instance, guest: str) -> None:
    four, six = ("tcp", "0.0.0.0", 22), ("tcp", "::", 22)  # sshd takes one after the other
    ssh = until(lambda: named(banger, guest, four, six), timeout_s=BOOT_TIMEOUT_S)[four]
    assert (ssh["process"], ssh["endpoint"]) == ("sshd", "shared-guest.vm:22")
    assert "url" not in ssh
    before = banger.show(guest)["last_touched_at"]
    banger.ok("vm", "ports", guest)
    assert banger.show(guest)["last_touched_at"] == before


def test_links_of_what_speaks_http(banger: Instance, guest: str) -> None:
    """The image has git's daemon, and perl is a web server, one that starts no program for an answer."""
    script = r"""
        systemd-run -q --unit=web --collect perl -MIO::Socket::INET -e '
            $SIG{PIPE} = "IGNORE";
            $all = IO::Socket::INET->new(LocalPort => 8080, Listen => 9) or die;
            while ($one = $all->accept) {
                <$one>;
                print $one "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n";
                close $one;
            }'
        systemd-run -q --unit=local --collect systemd-socket-activate -l 127.0.0.1:9001 --inetd -a cat
        systemd-run -q --unit=git --collect git daemon --listen=0.0.0.0 --port=9418
    """
    banger.ok("vm", "exec", guest, "sh", "-ec", script)
    key, link = ("tcp", "0.0.0.0", 8080), "shared-guest.vm:8080  http://shared-guest.vm:8080/"

    # who does not answer within 1.5 s has no link this time
    def with_link() -> Listeners:
        found = named(banger, guest, key, ("tcp", "127.0.0.1", 9001), ("tcp", "0.0.0.0", 9418))
        return found if "url" in found.get(key, {}) else {}

    def table_with_link() -> list[str]:
        lines = banger.ok("vm", "ports", guest).text.splitlines()
        return lines if any(line.endswith(link) for line in lines) else []

    seen = until(with_link, timeout_s=120)
    web = seen[key]
    assert (web["endpoint"], web["url"]) == ("shared-guest.vm:8080", "http://shared-guest.vm:8080/")
    assert "endpoint" not in seen["tcp", "127.0.0.1", 9001]
    git = seen["tcp", "0.0.0.0", 9418]
    assert (git["endpoint"], "url" in git) == ("shared-guest.vm:9418", False)
    assert str(git["process"]).startswith("git")
    table = until(table_with_link, timeout_s=120)
    assert table[0].split() == ["PROTO", "LISTENS", "ON", "PORT", "PROCESS", "PID", "ADDRESS", "LINK"]


def test_stats_and_health_have_the_guests_figures(banger: Instance, guest: str) -> None:

    def figures_of_the_guest() -> dict[str, int]:
        """{}: it has not answered within 2 s."""
        (stats,) = json.loads(banger.ok("vm", "stats", guest, "--json").text)
        found: dict[str, int] = stats.get("guest", {})
        return found

    figures = until(figures_of_the_guest, timeout_s=60)
    assert 150 << 10 < figures["memory_total_kib"] <= 256 << 10
    assert 0 < figures["memory_available_kib"] < figures["memory_total_kib"]
    assert 0 < figures["root_free_bytes"] < figures["root_total_bytes"]
    assert 0 < figures["work_free_bytes"] < figures["work_total_bytes"] <= 1 << 30
    health = json.loads(banger.ok("vm", "health", guest, "--json").text)
    assert health["healthy"] is True
    assert health["memory_total_kib"] == figures["memory_total_kib"]
    assert health["uptime_s"] >= figures["uptime_s"]
    until(lambda: " of " in banger.ok("vm", "stats", guest).text.splitlines()[1], timeout_s=60)


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
