"""`vm stats`, `vm health`, `vm ping`, `vm prune` and `host audit`: what they print and exit with."""

from __future__ import annotations

import json
import os
import pty
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Instance

STUCK = {"kind": "tap", "name": "tap-fc-stuck", "problem": "belongs to no VM", "fix": "delete_tap"}
MARKED = {**STUCK, "name": "tap-fc-1", "vm_id": "a" * 64}
NAMESAKE = {"kind": "tap", "name": "tap-fc-2", "problem": "has banger's name, but not its mark"}


def lines(output: bytes) -> list[str]:
    return output.decode().splitlines()


@pytest.fixture
def mixed(tmp_path: Path, agent_program: Path) -> Iterator[Instance]:
    """Three VMs: `on` runs, `deaf` runs with a silent agent, `off` does not."""
    instance = Instance(tmp_path / "home", agent_program, BANGER_TEST_DEAF="deaf")
    for name in ("on", "deaf"):
        instance("vm", "create", "--name", name)
    instance("vm", "create", "--name", "off", "--no-start")
    yield instance
    instance.end()


def auditing(tmp_path: Path, agent_program: Path, *findings: dict[str, str]) -> Instance:
    return Instance(tmp_path / "home", agent_program, BANGER_TEST_FINDINGS=json.dumps(findings))


def test_stats_health_and_ping(mixed: Instance) -> None:
    table = lines(mixed("vm", "stats").stdout)
    assert table[0].split("  ")[0] == "NAME"
    assert table[0].split("DISK")[1].split() == ["LOAD", "GUEST", "MEM", "GUEST", "/", "GUEST", "/root"]
    seen = [line.split() for line in table[1:]]
    assert [words[:7] for words in seen] == [
        [name, "running", "12.5%", "64.0M", "1.0G", "-", "5.0M"] for name in ("on", "deaf")
    ]
    assert " ".join(seen[0][7:]) == "0.25 64.0M of 256.0M 2.0G of 8.0G -"
    assert seen[1][7:] == ["-"] * 4
    done = mixed("vm", "stats", "off", "none", "on", "off", status=1)
    assert [line.split()[:3] for line in lines(done.stdout)[1:]] == [
        ["off", "created", "-"],
        ["on", "running", "12.5%"],
    ]
    assert b"banger: no VM is called 'none'" in done.stderr
    (taken,) = json.loads(mixed("vm", "stats", "on", "--json").stdout)
    assert taken["stats"]["metrics_raw"] == {"net": {"rx": 1}}
    assert taken["guest"]["memory_available_kib"] == 192 << 10
    assert "guest" not in json.loads(mixed("vm", "stats", "deaf", "--json").stdout)[0]

    health = dict(line.split("  ", 1) for line in lines(mixed("vm", "health", "on").stdout))
    assert (health["healthy"].strip(), health["up"].strip()) == ("yes", "75 s")
    dead = json.loads(mixed("vm", "health", "off", "--json").stdout)
    assert (dead["healthy"], dead["state"], "uptime_s" in dead) == (False, "created", False)
    assert lines(mixed("vm", "ping", "on").stdout) == ["alive"]
    assert lines(mixed("vm", "ping", "off").stdout) == ["dead"]
    for command in ("health", "ping"):
        done = mixed("vm", command, "deaf", status=1)
        assert done.stdout == b""
        assert lines(done.stderr)[0] == "banger: the guest's agent did not say how it is within 3 s"


def test_ports(mixed: Instance) -> None:
    done = mixed("vm", "ports", "on")
    assert [line.split() for line in lines(done.stdout)] == [
        ["PROTO", "LISTENS", "ON", "PORT", "PROCESS", "PID", "ADDRESS", "LINK"],
        ["udp", "127.0.0.1", "53", "-", "-", "-", "-"],
        ["tcp", "::", "8080", r"ngi\x1b[31mnx", "412", "on.vm:8080", "http://on.vm:8080/"],
    ]
    assert lines(done.stderr) == ["3 more are not shown"]
    said = json.loads(mixed("vm", "ports", "on", "--json").stdout)
    assert (said["left_out"], said["ports"][1]["url"]) == (3, "http://on.vm:8080/")
    assert b"is not running" in mixed("vm", "ports", "off", status=1).stderr


def test_prune_deletes_what_does_not_run(mixed: Instance) -> None:
    done = mixed("vm", "prune", status=2)
    assert b"give -f" in done.stderr
    assert len(mixed.ids()) == 3
    assert lines(mixed("vm", "prune", "-f").stdout) == ["off"]
    assert len(mixed.ids()) == 2
    assert mixed("vm", "prune", "-f", "--json").stdout == b"[]\n"
    assert b"nothing to delete" in mixed("vm", "prune").stderr


@pytest.mark.parametrize(("answer", "left"), [("n", 3), ("", 3), ("y", 2)])
def test_prune_asks_on_a_terminal(mixed: Instance, answer: str, left: int) -> None:
    leader, follower = pty.openpty()
    try:
        with mixed.popen("vm", "prune", stdin=follower) as child:
            os.write(leader, f"{answer}\n".encode())
            out, err = child.communicate(timeout=60)
            assert child.returncode == (0 if answer == "y" else 1)
    finally:
        os.close(leader)
        os.close(follower)
    assert b"off" in out
    assert b"Delete 1 VM?" in err
    assert len(mixed.ids()) == left


def test_audit_of_a_clean_host(tmp_path: Path, agent_program: Path) -> None:
    banger = auditing(tmp_path, agent_program)
    try:
        done = banger("host", "audit")
        assert (done.stdout, done.stderr) == (b"", b"nothing unexplained\n")
        assert banger("host", "audit", "--fix", "--json").stdout == b"[]\n"
    finally:
        banger.end()


def test_audit_reports_and_fixes(tmp_path: Path, agent_program: Path) -> None:
    banger = auditing(tmp_path, agent_program, MARKED)
    try:
        table = lines(banger("host", "audit", status=1).stdout)
        assert table[0].split() == ["KIND", "NAME", "VM", "PROBLEM", "OUTCOME"]
        assert table[1].split()[:3] == ["tap", "tap-fc-1", "a" * 12]
        assert table[1].endswith("--fix removes it")
        (fixed,) = lines(banger("host", "audit", "--fix").stdout)[1:]
        assert fixed.endswith("removed")
        banger("host", "audit")
    finally:
        banger.end()


def test_what_stays_is_exit_status_1(tmp_path: Path, agent_program: Path) -> None:
    banger = auditing(tmp_path, agent_program, MARKED, NAMESAKE, STUCK)
    try:
        found = json.loads(banger("host", "audit", "--json", status=1).stdout)
        assert [finding.get("fixable", False) for finding in found] == [True, False, True]
        table = lines(banger("host", "audit", "--fix", status=1).stdout)
        assert table[1].endswith("removed")
        assert table[2].endswith("left alone")
        assert table[3].endswith("not removed: tap-fc-stuck is in use")
        assert len(json.loads(banger("host", "audit", "--json", status=1).stdout)) == 2
    finally:
        banger.end()
