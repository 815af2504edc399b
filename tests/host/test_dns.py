"""Names on real addresses: the bridge's port 53, storms, the host's resolver, a real systemd-resolved."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from banger.config.settings import Settings
from banger.helper.inprocess import InProcessHelper
from banger.network.dnszone import NamedGuest
from banger.network.names import GUEST_PORT, Names
from tests import realdnsmasq, realresolved
from tests.artifacts import REPOSITORY
from tests.capabilities import require
from tests.unit.network.dnsasks import Asker, Upstream, ask_by_tcp, closing, question
from tests.unit.network.test_dns_server import NoRoutes

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("netns", "tun", "dig")]

BRIDGE = "10.9.0.1"
SETTINGS = Settings(bridge_name="br-t", bridge_ip=BRIDGE, cidr=24, default_dns="127.0.0.54")
QUIET, *STORMY = (NamedGuest(f"guest-{n}", f"10.9.0.{n}", nat=n == 2) for n in range(2, 6))
VALID, MALFORMED = 10_000, 200
TRIES = 20


@pytest.fixture
async def names(helper: InProcessHelper, tmp_path: Path) -> AsyncIterator[Names]:
    """Served on a bridge. The guests' addresses are this namespace's own too: what they send comes by lo."""
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text(f"nameserver {BRIDGE}\nnameserver 127.0.0.53\n")
    await helper.ensure_bridge("br-t", address=BRIDGE, prefix=24)
    made = Names(SETTINGS, helper, resolv_conf=str(resolv_conf))
    await made.open()
    await made.bridge_up()
    for number, guest in enumerate((QUIET, *STORMY)):
        realresolved.command("ip", "address", "add", guest.address, "dev", "lo")
        made.put(str(number), guest)
    assert made.problems() == ()
    yield made
    await made.bridge_down()
    await helper.delete_bridge("br-t")
    await made.close()


def dig(*words: str) -> str:
    """The answer section, one line a record; or the status."""
    argv = ["dig", "+tries=5", "+time=2", "+noauthority", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    answers = [line for line in done.stdout.splitlines() if line and not line.startswith(";")]
    status = re.search(r"status: (\w+)", done.stdout)
    return "\n".join(answers) or (status[1] if status else done.stdout)


async def asked(*words: str) -> str:
    return await asyncio.to_thread(dig, *words)


async def test_dig_is_answered_on_the_host_and_on_the_bridge(names: Names) -> None:
    for way in (("@127.0.0.1", "-p", "42069"), (f"@{BRIDGE}",)):
        for transport in ("+notcp", "+tcp"):
            answer = await asked(*way, transport, "guest-3.vm")
            assert answer.split() == ["guest-3.vm.", "5", "IN", "A", "10.9.0.3"]
            assert await asked(*way, transport, "nobody.vm") == "NXDOMAIN"
            assert await asked(*way, transport, "guest-3.vm", "AAAA") == "NOERROR"
            assert await asked(*way, transport, "example.org") == "REFUSED"
        assert (await asked(*way, "-x", "10.9.0.3")).endswith("guest-3.vm.")


async def test_the_hosts_resolver_is_asked_for_guests_with_nat_only(names: Names, tmp_path: Path) -> None:
    with closing(await Upstream.start("127.0.0.53", 53)):
        assert "192.0.2.1" in await asked(f"@{BRIDGE}", "-b", QUIET.address, "www.example.org")
        assert "x" * 200 in await asked(f"@{BRIDGE}", "-b", QUIET.address, "www.example.org", "TXT")
        assert await asked(f"@{BRIDGE}", "-b", STORMY[0].address, "www.example.org") == "REFUSED"
        assert await asked("@127.0.0.1", "-p", "42069", "www.example.org") == "REFUSED"
    assert await asked(f"@{BRIDGE}", "-b", QUIET.address, "www.example.org") == "SERVFAIL"
    (tmp_path / "resolv.conf").write_text(f"nameserver {BRIDGE}\n")  # ourselves
    with closing(await Upstream.start(SETTINGS.default_dns, 53)):
        assert "192.0.2.1" in await asked(f"@{BRIDGE}", "-b", QUIET.address, "www.example.org")


STORM = """
import os, socket, sys
source, target, port, packet, valid, malformed = sys.argv[1:]
packet, valid, malformed = bytes.fromhex(packet), int(valid), int(malformed)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind((source, 0))
sender.connect((target, int(port)))
for number in range(valid):
    sender.send(number.to_bytes(2, "big") + packet[2:])
    if number % (valid // malformed) == 0:
        sender.send(os.urandom(number % 90))
"""


def storm(guest: NamedGuest) -> None:
    """From a process of its own, as fast as it can."""
    packet = question(f"{guest.name}.vm").hex()
    argv = [sys.executable, "-S", "-c", STORM, guest.address, BRIDGE, str(GUEST_PORT), packet]
    subprocess.run([*argv, str(VALID), str(MALFORMED)], check=True, timeout=120)


async def ask_until_answered(asker: Asker, packet: bytes) -> int:
    """As a resolver does; how many times it took."""
    for tried in range(1, TRIES + 1):
        asker.send(packet)
        try:
            async with asyncio.timeout(1):
                await asker.heard.get()
            return tried
        except TimeoutError:
            continue
    raise AssertionError("no answer")


async def test_answers_go_on_in_a_storm(names: Names) -> None:
    """200 malformed and 10,000 valid packets of each of three guests, at once; a fourth one, and the host,
    ask meanwhile; so do the stormy ones when it is over."""
    asker, host = await Asker.at(BRIDGE, GUEST_PORT, source=QUIET.address), await Asker.at("127.0.0.1", 42069)
    with closing(asker, host):
        storms = [asyncio.create_task(asyncio.to_thread(storm, guest)) for guest in STORMY]
        tries, slowest = [], 0.0
        while not all(task.done() for task in storms):
            began = time.perf_counter()
            tries.append(await ask_until_answered(asker, question("guest-3.vm")))
            tries.append(await ask_until_answered(host, question("guest-4.vm")))
            slowest = max(slowest, time.perf_counter() - began)
        await asyncio.gather(*storms)
    print(f"{len(tries)} answers meanwhile, {sum(tries)} asked, the slowest pair {slowest * 1e3:.1f} ms")
    for guest in STORMY:
        assert (await asked(f"@{BRIDGE}", "-b", guest.address, "guest-2.vm")).endswith(QUIET.address)
        assert (await ask_by_tcp(BRIDGE, GUEST_PORT, question(f"{guest.name}.vm"))).rr


async def test_the_bridges_port_comes_and_goes_with_it(names: Names, helper: InProcessHelper) -> None:
    await names.bridge_up()
    assert "10.9.0.3" in await asked(f"@{BRIDGE}", "guest-3.vm")
    await names.bridge_down()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", GUEST_PORT))
        await names.bridge_up()
        (problem,) = names.problems()
        assert f"{BRIDGE}:53, guests resolve no names" in problem
        assert f"(pid {os.getpid()}) has that port" in problem
        assert "10.9.0.3" in await asked("@127.0.0.1", "-p", "42069", "guest-3.vm"), "the host's goes on"
    await names.check()
    assert names.problems() == ()
    assert "10.9.0.3" in await asked(f"@{BRIDGE}", "guest-3.vm")


@require("own-mounts")
async def test_the_recipe_for_a_plain_resolv_conf(netns: None, tmp_path: Path) -> None:
    """docs/names.md: ours is the first server; what it refuses is asked of the second one."""
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.42\nnameserver 127.0.0.53\n")
    script = "mount --bind $0 $(readlink -f /etc/resolv.conf); getent -s dns hosts $1"

    async def resolve(name: str) -> str:
        argv = ["unshare", "--mount", "sh", "-c", script, str(resolv_conf), name]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60)
        return done.stdout.partition(" ")[0] or f"status {done.returncode}"

    names = Names(Settings(dns_listen="127.0.0.42:53"), NoRoutes())
    await names.open()
    names.put("1", QUIET)
    with closing(await Upstream.start("127.0.0.53", 53)):
        assert await resolve("guest-2.vm") == QUIET.address
        assert await resolve("www.example.org") == "192.0.2.1"
        await names.close()
        assert await resolve("www.example.org") == "192.0.2.1"


@require("dnsmasq")
async def test_the_recipe_for_dnsmasq(names: Names, tmp_path: Path) -> None:
    lines = realdnsmasq.recipe()
    assert lines[0] == "server=/vm/127.0.0.1#42069"
    lines = [line.replace("172.16.0.0", "10.9.0.0") for line in lines]
    with realdnsmasq.dnsmasq(tmp_path / "dnsmasq.conf", lines, "--port=5399", "--except-interface=br-t"):
        way = ("@127.0.0.1", "-p", "5399")
        assert (await asked(*way, "guest-3.vm")).endswith("10.9.0.3")
        assert (await asked(*way, "-x", "10.9.0.3")).endswith("guest-3.vm.")


@require("resolved", "own-mounts")
async def test_a_real_systemd_resolved_asks_us_for_vm_alone(tmp_path: Path) -> None:
    files = await asyncio.to_thread(realresolved.unpacked)
    argv = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    argv += [sys.executable, "-m", "tests.host.resolvedcase", str(files), str(tmp_path / "home")]
    done = await asyncio.to_thread(
        subprocess.run, argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False
    )
    print(done.stdout)
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr
    assert "calm-otter.vm" in done.stdout, "an address has its name, too"
