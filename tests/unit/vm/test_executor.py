"""The executor: every repair has its two points, users go before what they use, no failure stops the rest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from banger.helper.interface import Helper
from banger.model.records import ProcessIdentity
from banger.network.firewall import Firewall
from banger.vm.executor import ORDER, execute
from banger.vm.planner import Finding, Fix

pytestmark = pytest.mark.anyio

FIXES = [fix for fix in Fix if fix]


class Hand:
    """Stands for the helper and the firewall: writes down what is put right."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def delete_tap(self, name: str) -> None:
        self.done.append(f"delete_tap {name}")

    async def delete_bridge(self, name: str) -> None:
        self.done.append(f"delete_bridge {name}")

    async def detach_loop(self, device: str, *, backing_file: str) -> None:
        self.done.append(f"detach_loop {device} {backing_file}")

    async def remove_dm(self, name: str, *, uuid: str) -> None:
        self.done.append(f"remove_dm {name} {uuid}")

    async def remove_nft_table(self, table: str) -> None:
        self.done.append(f"delete_nft_table {table}")

    async def mend(self) -> None:
        self.done.append("restore_firewall")

    async def signal(self, identity: ProcessIdentity, _signum: int) -> bool:
        self.done.append(f"kill_process {identity.pid}")
        return True

    async def wait_gone(self, _identity: ProcessIdentity, *, timeout_s: float) -> bool:
        return True


def one_of_each(vms_dir: Path) -> list[Finding]:
    """In the table's order, which is not the one that they go in."""
    (vms_dir / "folder").mkdir()
    (vms_dir / "file").touch()
    identity = ProcessIdentity(role="monitor", pid=7, start_time=1)
    names = {Fix.REMOVE_FILE: str(vms_dir / "file"), Fix.REMOVE_FOLDER: str(vms_dir / "folder")}
    return [
        Finding(
            kind="x",
            name=names.get(fix, f"name-{fix}"),
            problem="",
            fix=fix,
            extra="extra",
            process=identity if fix is Fix.KILL_PROCESS else None,
        )
        for fix in FIXES
    ]


async def test_every_repair_is_done_in_order_between_its_points(tmp_path: Path) -> None:
    hand, points = Hand(), list[str]()
    findings = [*one_of_each(tmp_path), Finding(kind="x", name="left", problem="no mark")]
    left = await execute(
        findings,
        helper=cast(Helper, hand),
        firewall=cast(Firewall, hand),
        vms_dir=str(tmp_path),
        work_dir=f"{tmp_path}/work",
        crash_point=points.append,
    )
    assert left == []
    assert points == [f"fix:{fix}:{when}" for fix in ORDER for when in ("before", "after")]
    files = (Fix.REMOVE_FILE, Fix.REMOVE_FOLDER)
    assert [line.split()[0] for line in hand.done] == [fix for fix in ORDER if fix not in files]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_one_that_fails_is_told_and_the_others_are_done(tmp_path: Path, fix: Fix, when: str) -> None:
    hand, points = Hand(), list[str]()

    def fail(point: str) -> None:
        points.append(point)
        if point == f"fix:{fix}:{when}":
            raise PermissionError(1, os.strerror(1))

    findings = one_of_each(tmp_path)
    failures = await execute(
        findings,
        helper=cast(Helper, hand),
        firewall=cast(Firewall, hand),
        vms_dir=str(tmp_path),
        work_dir=f"{tmp_path}/work",
        crash_point=fail,
    )
    assert [(finding.fix, str(error)) for finding, error in failures] == [
        (fix, "[Errno 1] Operation not permitted")
    ]
    assert len(points) == 2 * len(FIXES) - (when == "before")
