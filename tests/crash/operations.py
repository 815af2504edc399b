"""What a life can do, by name: the operations under test, and what leaves something for them.

`orphan` and `plant` put on the host what only reconcile and `host audit --fix` remove: a running VM that the
store has forgotten, a loop over a file of its folder, an nft table and a bridge that carry the instance's
mark. (A dm target needs device-mapper: tests/lab.)
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from banger.api.requests import (
    CreateVM,
    KillVM,
    PublishPort,
    PublishPorts,
    SetVM,
    SetWorkspace,
    UnpublishPorts,
)
from banger.config.instance import instance_id
from banger.helper import marks
from banger.model.progress import no_progress
from banger.system import loops
from banger.vm.errors import describe_cause
from banger.vm.planner import Finding
from banger.vm.service import VMService

MIB = 1 << 20
NAME = "victim"
ORPHAN = "orphan"
BYSTANDER = "bystander"
OLD_BRIDGE = "br-old"
PORT = 18080
WORK_FILE = "untracked.txt"
GIT_ALONE = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
"""Settings of whoever runs the tests, such as signing commits, are not for git here."""

Operation = Callable[[VMService], Awaitable[object]]


class RepairFailed(Exception):
    """`host audit --fix` names each that failed."""

    def __init__(self, failures: Sequence[tuple[Finding, BaseException]]) -> None:
        super().__init__("; ".join(f"{f.fix} {f.name}: {describe_cause(error)}" for f, error in failures))
        self.fixes = tuple(f.fix.value for f, _ in failures)


async def create(vms: VMService) -> None:
    await vms.create(CreateVM(name=NAME, nat=True), no_progress)


async def start(vms: VMService) -> None:
    await vms.start(vms.resolve(NAME).id, no_progress)


async def stop(vms: VMService) -> None:
    await vms.stop(vms.resolve(NAME).id, no_progress)


async def restart(vms: VMService) -> None:
    await vms.restart(vms.resolve(NAME).id, no_progress)


async def change(vms: VMService) -> None:
    request = SetVM(work_disk_size_bytes=96 * MIB, nat=False)
    await vms.set(vms.resolve(NAME).id, request, progress=no_progress)


async def publish(vms: VMService) -> None:
    """Repeated, it is no error. On all addresses: the loopback of the namespace is down."""
    request = PublishPorts(ports=(PublishPort(host_address="0.0.0.0", host_port=PORT, guest_port=80),))
    await vms.publish(vms.resolve(NAME).id, request)


async def unpublish(vms: VMService) -> None:
    request = UnpublishPorts(all=True)
    await vms.unpublish(vms.resolve(NAME).id, request)


async def kill(vms: VMService) -> None:
    await vms.kill(vms.resolve(NAME).id, KillVM(signal="KILL"), progress=no_progress)


async def delete(vms: VMService) -> None:
    await vms.delete(vms.resolve(NAME).id, no_progress)


async def bring(vms: VMService) -> None:
    """A repository on the work disk, one commit ahead of what was brought, and a file that is in none.

    The fake guest knows no git and copies nothing: its work is read off the disk.
    """
    record = vms.resolve(NAME)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "repo")
        repository.mkdir()
        git = ("git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@example.org")
        _command(*git, "init", "-q", "--template=", "-b", "main")
        _command(*git, "commit", "-q", "--allow-empty", "-m", "brought")
        brought = _command(*git, "rev-parse", "HEAD").strip()
        _command(*git, "commit", "-q", "--allow-empty", "-m", "done in the guest")
        Path(repository, WORK_FILE).write_text("work\n")
        script = ["mkdir repo", "cd repo"]
        for path in sorted(repository.rglob("*")):
            inside = path.relative_to(repository)
            script.append(f"mkdir {inside}" if path.is_dir() else f"write {path} {inside}")
        Path(folder, "script").write_text("\n".join(script) + "\n")
        _command("debugfs", "-w", "-f", f"{folder}/script", record.runtime.work_disk_path)
    request = SetWorkspace(
        source_path="/home/me/app",
        repo_root="/home/me/app",
        repo_name="app",
        guest_path="/root/repo",
        mode="shallow_overlay",
        head_commit=brought,
        base_commit=brought,
        brought_commit=brought,
        current_branch="main",
        branch_name="main",
        refs={"HEAD": brought, "heads/main": brought},
    )
    await vms.set_workspace(record.id, request)


async def keep(vms: VMService) -> None:
    """On request, of a VM that is dead."""
    await vms.keep(vms.resolve(NAME).id, no_progress)


async def repair(vms: VMService) -> None:
    if failures := await vms.repair(await vms.audit()):
        raise RepairFailed(failures)


async def bystander(vms: VMService) -> None:
    await vms.create(CreateVM(name=BYSTANDER), no_progress)


async def plant(vms: VMService) -> None:
    """A VM's row goes, as from a database that was put back; and what else a mark can be on."""
    record = await vms.create(CreateVM(name=ORPHAN), no_progress)
    folder = Path(record.runtime.vm_dir)
    state = folder.parent.parent
    with sqlite3.connect(state / "banger.db") as database:
        database.execute("DELETE FROM vms WHERE id = ?", (record.id,))
    database.close()
    instance = instance_id(str(state))
    backing = folder / "cow.img"
    backing.touch(mode=0o600)
    os.truncate(backing, MIB)
    loops.attach(str(backing), read_only=True, label=marks.loop_label(instance, record.id))
    name = marks.nft_table(instance)
    _command("nft", "-f", "-", stdin=f"add table ip {name}\nadd chain inet {name} to_host\n")
    _command("nft", "flush", "chain", "inet", name, "to_host")
    _command("ip", "link", "add", OLD_BRIDGE, "type", "bridge")
    _command("ip", "link", "set", OLD_BRIDGE, "alias", marks.link_alias(instance, "", "bridge"))


def _command(*argv: str, stdin: str = "") -> str:
    environment = {**os.environ, **GIT_ALONE}
    done = subprocess.run(
        argv, check=True, timeout=60, capture_output=True, text=True, input=stdin, env=environment
    )
    return done.stdout


OPERATIONS: dict[str, Operation] = {
    "create": create,
    "start": start,
    "stop": stop,
    "restart": restart,
    "set": change,
    "publish": publish,
    "unpublish": unpublish,
    "kill": kill,
    "delete": delete,
    "repair": repair,
    "bring": bring,
    "keep": keep,
    "bystander": bystander,
    "plant": plant,
}

BEFORE: dict[str, tuple[str, ...]] = {
    "create": (),
    "start": ("create", "stop"),
    "stop": ("create",),
    "restart": ("create",),
    "set": ("create",),
    "publish": ("create",),
    "unpublish": ("create", "publish"),
    "kill": ("create",),
    "delete": ("create",),
    "repair": ("plant",),
}
"""The operations under test, and what brings a VM where each begins."""

BACK: dict[str, tuple[str, ...]] = {
    "create": ("delete",),
    "start": ("stop",),
    "stop": ("start",),
    "restart": (),
    "set": (),
    "publish": ("unpublish",),
    "unpublish": ("publish",),
    "kill": ("start",),
    "delete": ("create",),
    "repair": ("plant",),
}
"""From where each ends to where it begins."""

AFTER = {
    "create": "running",
    "start": "running",
    "stop": "stopped",
    "restart": "running",
    "set": "running",
    "publish": "running",
    "unpublish": "running",
    "kill": "stopped",
    "delete": "none",
    "repair": "none",
}
"""The state in which each ends."""
