"""Boot the lab host and run in it what needs device-mapper and a KVM for stock kernels.

One guest, one pytest inside it: `tests/lab/inside`, and the host tests whose kernel objects this kernel
makes otherwise than the one we run on. With BANGER_TEST_FIRECRACKER=PATH that program travels along and
real guests boot on the lab's KVM.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from tests.artifacts import artifacts
from tests.capabilities import require
from tests.lab.host import MODULES, lab_host
from tests.lab.image import lab_image, make_disk

pytestmark = [pytest.mark.slow, pytest.mark.anyio, require("root", "qemu", "mmdebstrap")]

HOST_TESTS = tuple(f"tests/host/test_{name}.py" for name in ("dm", "links", "loops", "network", "process"))
SETUP_TIMEOUT_S = 300.0
RUN_TIMEOUT_S = 3600.0
SETUP = f"for name in {MODULES}; do modprobe $name; done; ip link set lo up; mkdir -p /tmp"
"""The agent is init there: nobody else has done this."""
RUN = """
cd /root/project
export PYTHONPATH=/root/site:/root/project/src:/root/project PYTHONDONTWRITEBYTECODE=1 HOME=/root
export BANGER_LAB=1 BANGER_LAB_HOME=/root/home BANGER_TEST_ARTIFACTS=/root/home
if test -e /root/firecracker; then export BANGER_TEST_FIRECRACKER=/root/firecracker; fi
python3 -m pytest -p no:cacheprovider --durations=8 --tb=short -q tests/lab/inside {host_tests} 2>&1
"""


@pytest.mark.limit(4800)
async def test_what_needs_a_device_mapper_runs_in_the_lab(tmp_path: Path) -> None:
    base = artifacts()
    image = await asyncio.to_thread(lab_image, base)
    firecracker = os.environ.get("BANGER_TEST_FIRECRACKER")
    extra = {"firecracker": Path(firecracker)} if firecracker else {}
    disk = tmp_path / "lab.ext4"
    await asyncio.to_thread(make_disk, disk, base, extra=extra)
    try:
        async with lab_host(tmp_path / "lab", base, image=image, disk=disk) as lab:
            status, said = await lab.run(SETUP, timeout_s=SETUP_TIMEOUT_S)
            assert status == 0, said
            script = RUN.format(host_tests=" ".join(HOST_TESTS))
            status, said = await lab.run(script, timeout_s=RUN_TIMEOUT_S)
            print(said)
            assert status == 0, f"{said}\n--- console\n{lab.console()}"
    finally:
        disk.unlink()
    # what ran there may lack a Firecracker and nothing else
    lacking = re.search(r"^capabilities missing: (.*)$", said, re.MULTILINE)
    assert lacking is not None, said
    assert lacking[1] == ("none" if firecracker else "firecracker"), said
