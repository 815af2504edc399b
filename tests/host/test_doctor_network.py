"""doctor's network checks on real links, routes and rules, in a namespace; and doctor as a plain user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.helper.inprocess import InProcessHelper
from banger.local.findings import Check, Distribution, Status
from banger.local.netchecks import network_checks
from banger.network.surroundings import Lookout
from tests.capabilities import require
from tests.host.firewalls import DOCKER, iptables, shell
from tests.host.streets import ip

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("netns", "nft", "iptables")]

SETTINGS = Settings(bridge_name="br-t", bridge_ip="10.9.0.1", dns_listen="127.0.0.1:42069")
NAMES = {"bridge", "way out", "mtu", "names", "resolver", "forwarding", "bridge filtering", "firewall"}


@pytest.fixture
def uplink(netns: None) -> Iterator[None]:
    ip("link", "add", "up0", "type", "veth", "peer", "up1")
    ip("link", "set", "up1", "up")
    ip("address", "add", "198.51.100.2/24", "dev", "up0")
    ip("link", "set", "up0", "up")
    ip("route", "add", "default", "via", "198.51.100.1")
    yield
    ip("link", "delete", "up0")


async def look(paths: Paths, settings: Settings = SETTINGS) -> dict[str, Check]:
    found = await network_checks(paths, settings, root=True, distribution=Distribution("debian", "Debian"))
    return {check.name: check for check in found}


async def test_a_plain_host(paths: Paths, uplink: None) -> None:
    found = await look(paths)
    assert set(found) == NAMES
    assert {name for name, check in found.items() if check.status is not Status.PASS} <= {"resolver"}
    assert "leave by up0" in found["way out"].message


async def test_no_way_out(paths: Paths, netns: None) -> None:
    found = await look(paths)
    assert found["way out"].status is Status.WARN


async def test_a_changed_default_route_and_a_vpn(paths: Paths, uplink: None) -> None:
    """As wg-quick does it: a table and a rule of its own, a link with a small MTU."""
    ip("tuntap", "add", "vpn0", "mode", "tun")
    try:
        ip("link", "set", "vpn0", "mtu", "1420", "up")
        ip("address", "add", "10.9.7.1/16", "dev", "vpn0")
        ip("route", "add", "default", "dev", "vpn0", "table", "51820")
        ip("rule", "add", "not", "fwmark", "51820", "table", "51820", "priority", "32000")
        found = await look(paths)
        assert "leave by vpn0 (a VPN)" in found["way out"].message
        assert "default routes by up0" in found["way out"].message
        assert "rule 32000 leads to table 51820" in found["way out"].message
        assert "vpn0 takes 1420 bytes, guests send 1500" in found["mtu"].message
        assert found["bridge"].status is Status.FAIL
        assert "vpn0 (a VPN) has 10.9.7.1/16" in found["bridge"].message
    finally:
        ip("rule", "delete", "priority", "32000")
        ip("link", "delete", "vpn0")


async def test_what_doctor_says_of_a_network_in_use_is_what_a_start_refuses(
    paths: Paths, uplink: None, helper: InProcessHelper
) -> None:
    ip("route", "add", "10.9.0.0/20", "via", "198.51.100.9")
    found = await look(paths)
    assert "10.9.0.0/20 is reached by up0" in found["bridge"].message
    with pytest.raises(Exception, match="is in use already"):
        await helper.ensure_bridge("br-t", address="10.9.0.1", prefix=24)
    free = Settings(bridge_name="br-t", bridge_ip=found["bridge"].hint.split('"')[1])
    assert (await look(paths, free))["bridge"].status is Status.PASS
    await helper.ensure_bridge("br-t", address=free.bridge_ip, prefix=24)
    await helper.delete_bridge("br-t")


async def test_a_bridge_of_anothers_and_our_own(
    paths: Paths, uplink: None, helper: InProcessHelper, instance: str
) -> None:
    ip("link", "add", "br-t", "type", "bridge")
    assert (await look(paths))["bridge"].status is Status.FAIL
    ip("link", "delete", "br-t")
    Path(paths.state_dir, "instance").write_text(f"{instance}\n")
    await helper.ensure_bridge("br-t", address="10.9.0.1", prefix=24)
    check = (await look(paths))["bridge"]
    assert (check.status, check.message) == (Status.PASS, "br-t is there, 10.9.0.1/24")
    await helper.delete_bridge("br-t")


async def test_a_start_warns_with_doctors_sentence(paths: Paths, uplink: None) -> None:
    assert await Lookout(SETTINGS)("10.9.0.2") == ()
    iptables("iptables-nft", DOCKER)
    check = (await look(paths))["firewall"]
    assert check.status is Status.WARN
    assert await Lookout(SETTINGS)("10.9.0.2") == (f"{check.message}; {check.hint}",)
    shell("nft flush ruleset")  # of this namespace


def test_a_plain_user_gets_every_check(tmp_path: Path) -> None:
    """No daemon, no root: what cannot be seen is said, nothing raises."""
    tmp_path.chmod(0o755)
    code = (
        "import os, json\n"
        "from banger.local.doctor import checks, to_json\n"
        "from banger.config.paths import resolve_paths\n"
        "print(json.dumps([to_json(check) for check in checks(resolve_paths(dict(os.environ)))]))"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "BANGER_HOME": f"{tmp_path}/home"}
    # it may read this Python wherever it lies, and nothing more than any user
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+dac_read_search"]
    argv += ["--ambient-caps=+dac_read_search", sys.executable, "-c", code]
    done = subprocess.run(argv, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert set(found) >= NAMES | {"privileges", "subordinate ids", "daemon", "defaults"}
    assert found["privileges"]["status"] == "FAIL"
    assert found["firewall"]["message"] == "only root sees other firewalls' rules"
    assert all(check["hint"] for check in found.values() if check["status"] != "PASS")
