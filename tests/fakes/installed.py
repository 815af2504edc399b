"""Puts the fake Firecracker into a folder as a program, and starts processes as the helper does."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from banger.model.records import ProcessIdentity
from banger.system.process import read_stat

HERE = Path(__file__).parent
DEFINITION = HERE.parent / "data" / "firecracker-v1.16.1.yaml"

Plan = dict[str, object]


def install_fake_firecracker(folder: Path, plan: Plan | None = None) -> str:
    """Write FOLDER/firecracker and the plan it reads at each start. Returns the program's path."""
    definition = folder / "firecracker-api.json"
    if not definition.exists():
        definition.write_text(json.dumps(yaml.safe_load(DEFINITION.read_text())))
    set_plan(folder, plan or {})
    program = folder / "firecracker"
    program.write_text(
        f"#!{sys.executable} -IS\n"
        "import sys\n"
        f"sys.path.insert(0, {str(HERE.parent.parent)!r})\n"
        "from tests.fakes.firecracker import main\n"
        f"main({str(definition)!r}, {str(folder / 'plan.json')!r})\n"
    )
    program.chmod(0o755)
    return str(program)


def set_plan(folder: Path, plan: Plan) -> None:
    (folder / "plan.json").write_text(json.dumps(plan))


class DirectLauncher:
    """A Launcher without a helper. `close` kills what still runs, and reaps all."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self.argvs: list[tuple[str, ...]] = []

    async def launch(
        self, argv: Sequence[str], *, role: str, vm_id: str, vm_dir: str, stdout: str
    ) -> ProcessIdentity:
        self.argvs.append(tuple(argv))
        return await asyncio.to_thread(self._launch, list(argv), role, vm_dir, stdout)

    def _launch(self, argv: list[str], role: str, vm_dir: str, stdout: str) -> ProcessIdentity:
        log = os.open(f"{vm_dir}/{stdout}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        try:
            process = subprocess.Popen(
                argv,
                cwd=vm_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        self.started.append(process)
        stat = read_stat(process.pid)
        assert stat is not None
        return ProcessIdentity(role=role, pid=process.pid, start_time=stat.start_time)

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait(timeout=60)


def install_fake_bridge(folder: Path) -> str:
    """FOLDER/vhost-device-vsock: enough of one for QEMU to start with."""
    program = folder / "vhost-device-vsock"
    source = (HERE / "vhost_vsock.py").read_text()
    program.write_text(f"#!{sys.executable} -IS\n{source}")
    program.chmod(0o755)
    return str(program)
