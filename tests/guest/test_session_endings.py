"""What the end of a machine makes of its sessions, with systemd and with the agent as init."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import pytest

from tests.guest.instance import Instance, until

pytestmark = pytest.mark.guest

SYSTEMDS_PATIENCE_S = 90
"""What a shutdown takes at least that waits for somebody who does not end."""
STUBBORN = "trap '' TERM HUP; echo begun; while :; do sleep 1; done"


@pytest.mark.limit(600)
@pytest.mark.parametrize("init", ["auto", "agent"])
def test_an_orderly_stop_ends_sessions_and_writes_it_down(banger: Instance, init: str) -> None:
    vm = f"ending-{init}"
    banger.ok("vm", "run", "-d", "--name", vm, "--init", init)

    def start(name: str, *argv: str) -> None:
        banger.ok("vm", "session", "start", vm, "--name", name, "--", *argv)

    def show(name: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(banger.ok("vm", "session", "show", vm, name, "--json").text)
        return shown

    def has_begun(name: str) -> bool:
        return banger.ok("vm", "session", "logs", vm, name).text == "begun\n"

    start("plain", "sleep", "600")
    start("polite", "sh", "-c", "trap 'echo good bye; exit 3' TERM; echo begun; while :; do sleep 0.1; done")
    start("stubborn", "sh", "-c", STUBBORN)
    for name in ("polite", "stubborn"):
        until(partial(has_begun, name), timeout_s=60)
    begun = time.monotonic()
    banger.ok("vm", "stop", vm)
    took = time.monotonic() - begun
    console = banger.ok("vm", "logs", vm).text
    assert "ending poweroff" in console
    banger.ok("vm", "start", vm)
    for name, endings in {"plain": (143, 129), "polite": (3, 129), "stubborn": (137,)}.items():
        record = show(name)
        assert record["status"] == "exited", record
        assert record["exit_code"] in endings, record
    said = banger.ok("vm", "session", "logs", vm, "polite").text
    assert said == ("begun\ngood bye\n" if show("polite")["exit_code"] == 3 else "begun\n")
    assert took < SYSTEMDS_PATIENCE_S, "sessions hold no shutdown up"
    console = banger.ok("vm", "logs", vm).text
    assert "recover" not in console.rpartition("ending poweroff")[2], "the disks were left clean"
    banger.ok("vm", "delete", vm)
