"""Run by test_dns.py as a program in namespaces of its own: names through a real systemd-resolved.

What is asserted here: `.vm` and nothing else is asked of us, over the bridge's link; it is set again when it
was lost or resolved has started afresh; nothing of it is left once the bridge goes; a host whose resolved
does not run is no problem.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from banger.config.paths import resolve_paths
from banger.config.settings import Settings
from banger.helper.inprocess import InProcessHelper
from banger.network.dnszone import NamedGuest
from banger.network.names import Names
from tests import realresolved

SETTINGS = Settings(bridge_name="br-fc", bridge_ip="10.9.0.1")
GUEST = NamedGuest("calm-otter", "10.9.0.2", nat=False)
WAIT_S = 60.0


async def said(*words: str) -> str:
    argv = ["resolvectl", *words]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, timeout=60, check=False)
    return done.stdout.decode() + done.stderr.decode()


async def eventually(*words: str, holds: Callable[[str], bool]) -> str:
    deadline = time.monotonic() + WAIT_S
    while not holds(heard := await said(*words)):
        assert time.monotonic() < deadline, heard
        await asyncio.sleep(0.1)
    return heard


async def resolves(name: str = "calm-otter.vm") -> None:
    await eventually("query", "--cache=no", name, holds=lambda heard: "10.9.0.2" in heard)


async def case(files: Path, home: Path) -> None:
    helper = InProcessHelper("ab" * 8, resolve_paths({"BANGER_HOME": str(home)}))
    names = Names(SETTINGS, helper, check_s=0.3)
    await names.open()
    names.put("1", GUEST)
    with realresolved.resolved(files):
        await helper.ensure_bridge("br-fc", address=SETTINGS.bridge_ip, prefix=SETTINGS.cidr)
        await names.bridge_up()
        # a link is asked over while it has a carrier: a guest's tap with a guest behind it
        realresolved.command("ip", "link", "add", "port", "type", "veth", "peer", "name", "guest")
        for words in ("port master br-fc", "port up", "guest up"):
            realresolved.command("ip", "link", "set", *words.split())
        await resolves()
        heard = await said("query", "--cache=no", "10.9.0.2")
        print(heard)
        await eventually("default-route", "br-fc", holds=lambda heard: heard.endswith(": no\n"))
        assert (await said("dns", "br-fc")).endswith(": 127.0.0.1:42069\n")
        assert (await said("domain", "br-fc")).endswith(": ~vm\n")
        assert "not found" in await said("query", "--cache=no", "nobody.vm")
        names.remove("1")
        assert "not found" in await said("query", "--cache=no", "calm-otter.vm")
        names.put("1", GUEST)
        await resolves()

        await said("revert", "br-fc")  # another manager of the link takes it away
        await resolves()
    await names.check()
    assert names.problems() == (), "a resolver that does not run is no problem"
    with realresolved.resolved(files):
        await resolves()
        await names.bridge_down()
        for words in ("dns", "domain"):
            assert (await said(words, "br-fc")).strip().endswith("(br-fc):")
        await helper.delete_bridge("br-fc")
    await names.close()
    await helper.close()


if __name__ == "__main__":
    realresolved.make_private()
    realresolved.command("ip", "link", "set", "lo", "up")
    realresolved.put_on_path(Path(sys.argv[1]))
    with realresolved.bus():
        asyncio.run(case(Path(sys.argv[1]), Path(sys.argv[2])))
    print("done")
