"""`banger vm run --rm -- true`, all warm, against the same machine started by hand to the agent's first word.

By hand: the monitor's and the vsock bridge's very command lines (taken from a VM that banger started), the
same kernel and initramfs, fresh disks of the same kind; those, the tap and the listener are made outside
the clock. Aim: ratio 1.10, and at most 60 ms of banger's own. QEMU only.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from bench import machine
from bench.harness import Sample, cpu_ms, rounds, table, timed, wall
from bench.home import BANGER, Home, home
from tests.artifacts import artifacts

DISKS = ("overlay.ext4", "work.ext4")
ACK = bytes((0, 0, 0, 0, 0x31))


class Recorded:
    """A VM of banger's, taken down as command lines and files; its disks as mke2fs makes them."""

    def __init__(self, made: Home, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        made.run("vm", "run", "--name", "model", "-d")
        vm_dir = made.vm_dir("model")
        argvs = {}
        for process in json.loads((vm_dir / "handles.json").read_text())["processes"]:
            line = Path(f"/proc/{process['pid']}/cmdline").read_bytes()
            argvs[process["role"]] = [word.decode() for word in line.split(b"\0")[:-1]]
        if "vsock" not in argvs:
            raise RuntimeError("this host's monitor is not QEMU with its vsock bridge")
        self.bridge = argvs["vsock"]
        tap = json.loads((vm_dir / "handles.json").read_text())["tap_device"]
        # the folder may stand in an argument as an absolute path
        self.monitor = [
            word.replace(f"ifname={tap},", f"ifname={machine.TAP},").replace(str(vm_dir) + "/", "")
            for word in argvs["monitor"]
        ]
        shutil.copy(vm_dir / "initrd.img", folder)
        sizes = {name: (vm_dir / name).stat().st_size for name in DISKS}
        made.run("vm", "delete", "model")
        mke2fs = artifacts().e2fsprogs.mke2fs
        options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
        for name, size in sizes.items():
            with (folder / name).open("wb") as disk:
                disk.truncate(size)
            subprocess.run(
                [mke2fs, "-q", "-t", "ext4", "-O", "^resize_inode", "-E", options, folder / name],
                env=dict(artifacts().e2fsprogs.env),
                check=True,
                timeout=60,
            )

    def boot(self) -> Sample:
        run = Path(tempfile.mkdtemp(dir=self.folder.parent))
        for name in (*DISKS, "initrd.img"):
            subprocess.run(["cp", "--sparse=always", self.folder / name, run], check=True, timeout=60)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(run / "v.sock_1025"))
            listener.listen()
            listener.settimeout(machine.DEADLINE_S)
            began = time.perf_counter()
            deadline = began + machine.DEADLINE_S
            bridge = machine.start(self.bridge, run)
            started = [bridge]
            try:
                while not (run / "vu.sock").exists():
                    if time.perf_counter() > deadline:
                        raise RuntimeError("the vsock bridge makes no socket")
                    time.sleep(0.0005)
                started.append(machine.start(self.monitor, run))
                with machine.connect(run / "fc.sock", deadline) as control:
                    machine.qmp_continue(control)
                    running = time.perf_counter()
                    agent, _ = listener.accept()
                    with agent:
                        agent.settimeout(machine.DEADLINE_S)
                        agent.recv(4096)
                        ready = time.perf_counter()
                        agent.sendall(ACK)
            finally:
                machine.end(*started)
                shutil.rmtree(run)
        parts = {"machine": (running - began) * 1000, "agent": (ready - running) * 1000}
        return Sample((ready - began) * 1000, parts=parts)


def run(count: int) -> str:
    with machine.tap(), home() as made:
        recorded = Recorded(made, made.folder / "by-hand")
        # one VM stays, so that bridge and daemon are as on a machine in use
        made.run("vm", "create", "--no-start", "--name", "bystander")
        daemon = made.daemon_pid()

        def run_true() -> Sample:
            position, before = made.log_size(), cpu_ms(daemon)
            sample = timed([BANGER, "vm", "run", "--rm", "--", "true"], made.env)
            steps = made.steps_since(position)
            at = {message: when for when, message in made.said_since(position)}

            def when(beginning: str) -> float:
                return next(time for message, time in at.items() if message.startswith(beginning))

            removal = when("operation vm.delete began")
            inside = removal - when("step agent took")
            parts = {
                "machine": steps["machine"],
                "agent": steps["agent"],
                "true in the guest": inside,
                "removal": when("operation vm.delete: succeeded") - removal,
                "own": sample.wall_ms - steps["machine"] - steps["agent"] - inside,
                "daemon cpu": cpu_ms(daemon) - before,
            }
            return Sample(sample.wall_ms, sample.cpu_ms, parts)

        taken = rounds({"by hand": recorded.boot, "banger vm run --rm -- true": run_true}, count)
    more = wall(taken["banger vm run --rm -- true"]) - wall(taken["by hand"])
    return (
        table(taken, baseline="by hand")
        + f"\n\nBeyond the boot by hand: {more:.1f} ms of wall (p50 less p50)."
        + " `true in the guest`: from the agent's first word to the request to remove, mostly the emulated"
        + " guest's own time. `own`: the rest of the wall, removal included. `cpu ms` is the command's,"
        + " `daemon cpu` the daemon's without its children (mke2fs)."
    )
