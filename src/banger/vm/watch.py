"""What becomes of a VM whose machine ended by itself: poweroff, reboot, a panic, a dead monitor (SPEC §2)."""

from __future__ import annotations

import logging

from banger.model.progress import no_progress
from banger.model.states import VMState
from banger.vm.lifecycle import Lifecycle
from banger.vm.logtail import tail
from banger.vm.subject import Subject
from banger.vmm.protocol import CONSOLE_LOG

log = logging.getLogger(__name__)

MARKER = "banger-agent: ending "
"""What the agent prints on the console as it ends the machine, for a daemon that did not hear it."""


def said_on_console(vm_dir: str) -> str:
    """poweroff | reboot | halt as the console's last words have it, else ""."""
    for line in reversed(tail(f"{vm_dir}/{CONSOLE_LOG}", lines=6).splitlines()):
        _, found, kind = line.partition(MARKER)
        if found and kind.strip() in ("poweroff", "reboot", "halt"):
            return kind.strip()
    return ""


class ExitWatch:
    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def handle(self, subject: Subject, said: str) -> None:
        """The VM's lock is held and its state is still `running`."""
        said = said or said_on_console(subject.vm_dir)
        if said in ("poweroff", "halt"):
            log.info("%s: powered off from inside", subject.name)
            await self._lifecycle.tear_down(subject, VMState.STOPPED, last_error="")
        elif said == "reboot":
            log.info("%s: rebooting", subject.name)
            await self._lifecycle.tear_down(subject, VMState.STOPPED, last_error="")
            await self._lifecycle.start(subject, no_progress)
        else:
            last = tail(f"{subject.vm_dir}/{CONSOLE_LOG}", lines=5)
            why = "the machine ended by itself" + (f"; the console's last lines:\n{last}" if last else "")
            await self._lifecycle.tear_down(subject, VMState.ERROR, last_error=why)
