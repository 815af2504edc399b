"""More VMs than one bridge takes: two real guests, with a thousand others' addresses between them."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.instance import SMALL, Instance, instance

pytestmark = pytest.mark.guest

BRIDGE_IP = "172.16.0.1"
LAST_OF_FIRST, FIRST_OF_SECOND = "172.16.3.231", "172.16.3.232"
OTHERS = 996
"""VMs beside the first (172.16.0.2) that leave one address of the first bridge's thousand."""


@pytest.fixture(scope="module")
def banger() -> Iterator[Instance]:
    home = Path(tempfile.mkdtemp(prefix="banger-many-"))
    try:
        with instance(home, config=f"cidr = 22\nnetwork_isolation = false\n{SMALL}") as made:
            yield made
            left = made.leftovers_without_daemon()
            assert not left, f"left on the host: {left}"
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def others(made: Instance) -> Iterator[None]:
    """Rows of VMs that were never started, as copies of the only one's; the daemon does not run meanwhile."""
    made.ok("daemon", "stop")
    with contextlib.closing(sqlite3.connect(made.paths.database)) as store, store:
        cursor = store.execute("SELECT * FROM vms")
        names = [column[0] for column in cursor.description]
        (row,) = cursor.fetchall()
        for number in range(OTHERS):
            copy = dict(zip(names, row, strict=True))
            address = f"172.16.{(number + 3) // 256}.{(number + 3) % 256}"
            runtime = {**json.loads(copy["runtime"]), "guest_ip": address, "vm_dir": f"/nonexistent/{number}"}
            copy |= {"id": f"{number:064x}", "name": f"other-{number}", "runtime": json.dumps(runtime)}
            store.execute(f"INSERT INTO vms VALUES ({', '.join('?' * len(names))})", list(copy.values()))
    yield
    made.ok("daemon", "stop")
    with contextlib.closing(sqlite3.connect(made.paths.database)) as store, store:
        store.execute("DELETE FROM vms WHERE name LIKE 'other-%'")


def links(made: Instance) -> dict[str, str]:
    """Taps by the bridge that they are ports of."""
    shown = json.loads(made.run_in_netns("ip", "-json", "link", "show").require().text)
    return {link["ifname"]: link.get("master", "") for link in shown}


def test_two_guests_on_two_bridges(banger: Instance) -> None:
    banger.ok("vm", "create", "--no-start", "--name", "one")
    with others(banger):
        banger.ok("vm", "create", "--no-start", "--name", "last")
        banger.ok("vm", "create", "--no-start", "--name", "two")
        addresses = {str(vm["name"]): vm["runtime"] for vm in banger.vms()}
        given = {name: addresses[name]["guest_ip"] for name in ("last", "two")}  # type: ignore[index]
        assert given == {"last": LAST_OF_FIRST, "two": FIRST_OF_SECOND}
        banger.ok("vm", "start", "one", "two")
        seen = links(banger)
        assert {seen[tap] for tap in (tap_of(banger, "one"), tap_of(banger, "two"))} == {"br-fc", "br-fc-1"}
        for guest, other in (("one", "two"), ("two", "one")):
            for target in (BRIDGE_IP, f"{other}.vm"):
                banger.ok("vm", "exec", guest, "--", "ping", "-nqc1", "-W30", target)
        assert json.loads(banger.ok("host", "audit", "--json").text) == []
    # the next daemon finds both, and the second bridge, with the others gone
    for name in ("one", "two"):
        assert banger.state(name) == "running"
    banger.ok("vm", "exec", "two", "--", "ping", "-nqc1", "-W30", "one.vm")
    banger.ok("vm", "delete", "one", "two", "last")
    assert set(links(banger)) == {"lo"}


def tap_of(made: Instance, name: str) -> str:
    runtime = made.show(name)["runtime"]
    assert isinstance(runtime, dict)
    return str(runtime["tap_device"])
