"""From a start request to `InstanceStart` accepted, against the same calls made by hand on the same monitor.

A real Firecracker (BANGER_TEST_FIRECRACKER, else PATH) if there is one, else the tests' fake,
a Python program whose start-up is in both figures. The guest need not boot. Aim: at most 15 ms of its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from bench import machine
from bench.harness import Sample, cpu_ms, rounds, table, wall
from bench.home import Home, home
from tests.artifacts import artifacts
from tests.capabilities import firecracker_path
from tests.fakes.installed import install_fake_firecracker

NAME = "started"
BOOTING = "agent"
"""The step that begins when InstanceStart was accepted."""


def by_hand(program: str, vm_dir: Path, folder: Path) -> Sample:
    run = Path(tempfile.mkdtemp(dir=folder))
    for name in ("monitor.log", "metrics.json"):
        (run / name).touch()
    disks = [("rootfs", str(artifacts().rootfs), True)]
    disks += [(name.split(".")[0], str(vm_dir / name), False) for name in ("overlay.ext4", "work.ext4")]
    began = time.perf_counter()
    argv = [
        program,
        "--id",
        "by-hand",
        "--api-sock",
        "fc.sock",
        "--log-path",
        "monitor.log",
        "--level",
        "Info",
    ]
    process = machine.start(argv, run)
    try:
        with machine.connect(run / "fc.sock", began + machine.DEADLINE_S) as api:

            def put(path: str, **body: object) -> None:
                machine.api_put(api, path, body)

            connected = time.perf_counter()
            put("/machine-config", vcpu_count=1, mem_size_mib=256)
            put(
                "/boot-source",
                kernel_image_path=str(artifacts().vmlinux),
                initrd_path=str(vm_dir / "initrd.img"),
                boot_args="console=ttyS0 quiet reboot=k panic=-1",
            )
            for drive, path, read_only in disks:
                put(
                    f"/drives/{drive}",
                    drive_id=drive,
                    is_root_device=False,
                    path_on_host=path,
                    is_read_only=read_only,
                )
            put(
                "/network-interfaces/eth0",
                iface_id="eth0",
                host_dev_name=machine.TAP,
                guest_mac="06:00:ac:10:00:63",
            )
            put("/vsock", guest_cid=3, uds_path="v.sock")
            put("/entropy")
            put("/metrics", metrics_path="metrics.json")
            put("/actions", action_type="InstanceStart")
            accepted = time.perf_counter()
    finally:
        machine.end(process)
        shutil.rmtree(run)
    parts = {"process": (connected - began) * 1000, "calls": (accepted - connected) * 1000}
    return Sample((accepted - began) * 1000, parts=parts)


def by_banger(made: Home, daemon: int) -> Sample:
    position, before = made.log_size(), cpu_ms(daemon)
    with made.client() as client:
        client.info()
        began = time.perf_counter()
        operation = client.start_vm(NAME)
        accepted = 0.0
        for event in operation.events():
            if event.get("step") == BOOTING:
                accepted = time.perf_counter()
                break
        spent = cpu_ms(daemon) - before
        client.kill_vm(NAME).wait()
    if not accepted:
        raise RuntimeError("the start never came to its boot")
    steps = made.steps_since(position)
    parts = {"machine": steps.get("machine", 0.0), "daemon cpu": spent}
    return Sample((accepted - began) * 1000, parts=parts)


def run(count: int) -> str:
    program = firecracker_path()
    with tempfile.TemporaryDirectory() as programs, tempfile.TemporaryDirectory() as folder:
        real = program is not None
        if program is None:
            program = install_fake_firecracker(Path(programs), {"ready": False})
        with (
            machine.tap(),
            home(f'vmm = "firecracker"\nfirecracker_bin = "{os.path.abspath(program)}"\n') as made,
        ):
            made.run("vm", "create", "--no-start", "--name", NAME)
            daemon = made.daemon_pid()
            by_banger(made, daemon)  # makes disks and initramfs
            vm_dir = made.vm_dir(NAME)
            taken = rounds(
                {
                    "by hand": lambda: by_hand(program, vm_dir, Path(folder)),
                    "banger": lambda: by_banger(made, daemon),
                },
                count,
            )
    own = wall(taken["banger"]) - wall(taken["by hand"])
    kind = "a real Firecracker" if real else "the fake Firecracker (Python)"
    return (
        table(taken, baseline="by hand")
        + f"\n\nbanger's own: {own:.1f} ms of wall (p50 less p50), on {kind}."
    )
