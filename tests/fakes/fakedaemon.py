"""A daemon process with fake services whose guests are real agents, on the host, one process a VM.

Started as the real one is. The environment steers it: BANGER_TEST_AGENT (the agent's program),
BANGER_TEST_VERSION, BANGER_TEST_BOOT_S (how long a boot takes), BANGER_TEST_BROKEN (compose fails),
BANGER_TEST_DEAF (a VM whose agent is silent), BANGER_TEST_FINDINGS (what an audit finds, JSON).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "src"), str(Path(__file__).parents[2])]


def main() -> int:
    if "--detached" in sys.argv[1:]:
        if os.fork():
            os._exit(0)
        os.setsid()
    import msgspec

    import banger
    from banger.config.paths import Paths, resolve_paths
    from banger.config.settings import Settings
    from banger.daemon import main as daemon
    from banger.daemon.contracts import Services
    from banger.errors import BangerError, ErrorCode
    from banger.vm.planner import Finding
    from tests.fakes.guestagent import HostAgents
    from tests.fakes.services import FakeWorld

    banger.__version__ = os.environ.get("BANGER_TEST_VERSION", banger.__version__)
    paths = resolve_paths()
    world = FakeWorld(paths)
    world.vms.boot_s = float(os.environ.get("BANGER_TEST_BOOT_S", "0"))
    world.vms.deaf = {os.environ.get("BANGER_TEST_DEAF", "")}
    world.vms.stubborn = {"tap-fc-stuck"}
    findings = os.environ.get("BANGER_TEST_FINDINGS", "[]")
    world.vms.findings = msgspec.json.decode(findings, type=list[Finding])
    agents = HostAgents(os.environ.get("BANGER_TEST_AGENT", ""))
    world.vms.on_running, world.vms.on_gone = agents.start, agents.stop

    async def compose(paths: Paths, settings: Settings) -> Services:
        if "BANGER_TEST_BROKEN" in os.environ:
            raise BangerError(ErrorCode.HOST_UNSUITABLE, "the moon is full", hint="wait for another")
        with (Path(paths.state_dir) / "starts").open("a") as starts:
            starts.write(f"{os.getpid()}\n")
        return await world.compose(paths, settings)

    try:
        return daemon.run(
            paths, compose=compose, detached="--detached" in sys.argv[1:], version=banger.__version__
        )
    finally:
        agents.stop_all()


if __name__ == "__main__":
    sys.exit(main())
