"""The executor: puts right what the planner found. Each repair is idempotent; no error stops the rest."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Sequence

from banger.errors import BangerError, ErrorCode
from banger.helper.interface import Helper
from banger.network.firewall import Firewall
from banger.vm.planner import Finding, Fix
from banger.vm.steps import CrashPoint, no_crash

log = logging.getLogger(__name__)

KILL_WAIT_S = 20.0

ORDER = (
    Fix.KILL_PROCESS,
    Fix.REMOVE_DM,
    Fix.DETACH_LOOP,
    Fix.DELETE_TAP,
    Fix.DELETE_NFT_TABLE,
    Fix.RESTORE_FIREWALL,
    Fix.DELETE_BRIDGE,
    Fix.REMOVE_FILE,
    Fix.REMOVE_FOLDER,
)
"""Users of an object go before it."""


async def execute(
    findings: Sequence[Finding],
    *,
    helper: Helper,
    firewall: Firewall,
    vms_dir: str,
    work_dir: str,
    crash_point: CrashPoint = no_crash,
) -> list[tuple[Finding, BaseException]]:
    """Apply every finding that has a fix. Returns those that failed."""
    failures: list[tuple[Finding, BaseException]] = []
    for finding in sorted((f for f in findings if f.fix), key=lambda f: ORDER.index(f.fix)):
        try:
            crash_point(f"fix:{finding.fix}:before")
            await _apply(finding, helper=helper, firewall=firewall, folders=(vms_dir, work_dir))
            log.info("put right: %s %s %s", finding.kind, finding.name, finding.problem)
            crash_point(f"fix:{finding.fix}:after")
        except Exception as error:
            log.warning("could not put right %s %s: %s", finding.kind, finding.name, error)
            failures.append((finding, error))
    return failures


async def _apply(finding: Finding, *, helper: Helper, firewall: Firewall, folders: tuple[str, ...]) -> None:
    match finding.fix:
        case Fix.DELETE_TAP:
            await helper.delete_tap(finding.name)
        case Fix.DELETE_BRIDGE:
            await helper.delete_bridge(finding.name)
        case Fix.DETACH_LOOP:
            await helper.detach_loop(finding.name, backing_file=finding.extra)
        case Fix.REMOVE_DM:
            await helper.remove_dm(finding.name, uuid=finding.extra)
        case Fix.DELETE_NFT_TABLE:
            await helper.remove_nft_table(finding.name)
        case Fix.RESTORE_FIREWALL:
            await firewall.mend()
        case Fix.KILL_PROCESS:
            if finding.process is None:
                raise RuntimeError("a process finding without its process")
            await helper.signal(finding.process, signal.SIGKILL)
            if not await helper.wait_gone(finding.process, timeout_s=KILL_WAIT_S):
                raise BangerError(ErrorCode.CLEANUP_FAILED, f"{finding.name} is still there after SIGKILL")
        case Fix.REMOVE_FILE:
            await asyncio.to_thread(_remove, finding.name, folders)
        case Fix.REMOVE_FOLDER:
            await asyncio.to_thread(_remove, finding.name, folders)
        case Fix.NONE:
            pass


def _remove(path: str, folders: tuple[str, ...]) -> None:
    """Only below these folders; symlinks are removed, not followed."""
    if not os.path.abspath(path).startswith(tuple(f"{folder}/" for folder in folders)):
        raise BangerError(ErrorCode.INTERNAL, f"{path} is not below {' or '.join(folders)}")
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
