"""Four guests at once through the CLI: run, exec, restart, kill, start, delete; nothing is left."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.guest.instance import Instance

pytestmark = [pytest.mark.guest, pytest.mark.limit(2400)]

GUESTS = 4
BOOTS_S = 600.0
"""All of them boot on the processors that one has elsewhere."""
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def life_of(banger: Instance, name: str) -> str:
    """One guest's whole life, as a person in a hurry has it. Returns its name."""
    banger.ok("vm", "run", "-d", "--name", name, timeout_s=BOOTS_S)
    script = f"echo {name} > /root/name; hostname; cat {BOOT_ID}"
    said, first = banger.ok("vm", "exec", name, "--", "sh", "-c", script).text.split()
    assert said == name
    banger.ok("vm", "restart", name, timeout_s=BOOTS_S)
    script = f"cat /root/name {BOOT_ID}"
    kept, second = banger.ok("vm", "exec", name, "--", "sh", "-c", script).text.split()
    assert (kept, second != first) == (name, True)
    banger.ok("vm", "kill", name, "--signal", "KILL")
    assert banger.state(name) == "stopped"
    banger.ok("vm", "start", name, timeout_s=BOOTS_S)
    third = banger.ok("vm", "exec", name, "--", "cat", BOOT_ID).text.strip()
    assert third not in (first, second)
    banger.ok("vm", "delete", name)
    return name


def test_four_guests_at_once_leave_nothing(banger: Instance) -> None:
    names = [f"storm-{number}" for number in range(GUESTS)]
    with ThreadPoolExecutor(GUESTS) as people:
        assert list(people.map(lambda name: life_of(banger, name), names)) == names
    assert banger.vms() == []
    assert json.loads(banger.ok("host", "audit", "--json").text) == []
    assert banger.leftovers_without_daemon() == []
