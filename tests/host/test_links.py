"""Bridges and taps on the real kernel: marks, idempotence, refusals, nothing half-made."""

from __future__ import annotations

import ipaddress
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from banger.config.paths import Paths
from banger.errors import BangerError, ErrorCode
from banger.helper import marks
from banger.helper.inprocess import InProcessHelper
from banger.system.errors import KernelError
from banger.system.links import Links
from tests import leaks
from tests.capabilities import require

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("netns", "tun")]

MAC = "06:01:02:03:04:05"
VM = "ab" * 32
OTHER = "cd" * 32


@pytest.fixture
async def links(netns: None) -> AsyncIterator[Links]:
    made = Links()
    yield made
    for link in await made.all():
        if link.name != "lo":
            await made.delete(link)
    await made.close()


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, timeout=30, capture_output=True, text=True).stdout


async def test_a_tap_is_marked_up_and_on_its_bridge(links: Links) -> None:
    bridge = await links.create_bridge("br-fc", mac=MAC)
    await links.create_tap("tap-fc-1", master=bridge.index, alias="x" * 100)
    tap = await links.get("tap-fc-1")
    assert tap is not None
    assert (tap.kind, tap.master, tap.alias, tap.up, tap.carrier) == (
        "tun",
        bridge.index,
        "x" * 100,
        True,
        False,
    )
    with pytest.raises(KernelError) as caught:
        await links.create_tap("tap-fc-1", master=bridge.index, alias="")
    assert caught.value.code is ErrorCode.BUSY
    await links.delete(tap)
    await links.delete(tap)
    assert await links.get("tap-fc-1") is None


async def test_a_tap_whose_making_fails_is_not_there(links: Links) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KernelError, match="put the tap tap-fc-1 on its bridge"):
        await links.create_tap("tap-fc-1", master=9999, alias="")
    assert await links.get("tap-fc-1") is None
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # the netlink socket


async def test_bridge_address_and_what_others_have(links: Links) -> None:
    address = ipaddress.IPv4Interface("10.9.0.1/24")
    bridge = await links.create_bridge("br-fc", mac=MAC)
    await links.disable_ipv6_address(bridge)
    await links.add_address(bridge, address)
    await links.add_address(bridge, address)
    await links.set_up(bridge)
    assert (bridge.index, address) in await links.addresses()
    assert (bridge.index, address.network) in await links.routes()
    seen = await links.get("br-fc")
    assert seen is not None
    assert (seen.mac, seen.kind, seen.up) == (MAC, "bridge", True)
    assert "inet6" not in ip("-6", "addr", "show", "br-fc")
    await links.remove_address(bridge, address)
    await links.remove_address(bridge, address)
    with pytest.raises(KernelError) as caught:
        await links.create_bridge("br-fc", mac=MAC)
    assert caught.value.code is ErrorCode.ALREADY_EXISTS


async def test_the_bridge_is_made_once_and_put_right(helper: InProcessHelper, instance: str) -> None:
    await helper.ensure_bridge("br-t", address="10.9.0.1", prefix=24)
    ip("addr", "add", "10.8.0.1/24", "dev", "br-t")
    ip("link", "set", "br-t", "down")
    await helper.ensure_bridge("br-t", address="10.9.0.1", prefix=24)
    (bridge,) = await helper.list_links()
    assert (bridge.name, bridge.kind, bridge.instance, bridge.up) == ("br-t", "bridge", instance, True)
    shown = ip("addr", "show", "br-t")
    assert "10.9.0.1/24" in shown
    assert "10.8.0.1" not in shown
    await helper.delete_bridge("br-t")
    await helper.delete_bridge("br-t")


async def test_a_bridge_that_a_crash_left_unmarked_is_finished(
    helper: InProcessHelper, instance: str, links: Links
) -> None:
    await links.create_bridge("br-fc", mac=marks.bridge_mac(instance))
    await helper.ensure_bridge("br-fc", address="10.9.0.1", prefix=24)
    (bridge,) = await helper.list_links()
    assert bridge.instance == instance


async def test_a_strangers_bridge_is_left_alone(helper: InProcessHelper, links: Links, paths: Paths) -> None:
    await links.create_bridge("br-fc", mac=MAC)
    with pytest.raises(BangerError) as caught:
        await helper.ensure_bridge("br-fc", address="10.9.0.1", prefix=24)
    assert caught.value.code is ErrorCode.BUSY
    assert "bridge_name" in (caught.value.hint or "")
    await helper.delete_bridge("br-fc")
    assert await links.get("br-fc") is not None
    stranger = InProcessHelper("f" * 16, paths)
    await helper.ensure_bridge("br-t", address="10.9.0.1", prefix=24)
    with pytest.raises(BangerError, match="not this banger's"):
        await stranger.ensure_bridge("br-t", address="10.9.0.1", prefix=24)
    await stranger.delete_bridge("br-t")
    assert await links.get("br-t") is not None
    await stranger.close()


@pytest.mark.parametrize("route", [False, True])
async def test_a_network_in_use_is_refused(helper: InProcessHelper, links: Links, route: bool) -> None:
    other = await links.create_bridge("br-other", mac=MAC)
    await links.add_address(other, ipaddress.IPv4Interface("10.1.0.1/16"))
    await links.set_up(other)
    if route:
        ip("route", "add", "10.9.0.0/16", "dev", "br-other")
    wanted = "10.9.3.1" if route else "10.1.5.1"
    with pytest.raises(BangerError) as caught:
        await helper.ensure_bridge("br-fc", address=wanted, prefix=24)
    assert "br-other" in caught.value.brief
    assert "bridge_ip" in (caught.value.hint or "")
    assert await links.get("br-fc") is None


async def test_a_default_route_is_no_obstacle(helper: InProcessHelper, links: Links) -> None:
    other = await links.create_bridge("br-other", mac=MAC)
    await links.add_address(other, ipaddress.IPv4Interface("10.1.0.1/24"))
    await links.set_up(other)
    ip("route", "add", "default", "via", "10.1.0.2")
    await helper.ensure_bridge("br-fc", address="10.9.0.1", prefix=24)


async def test_taps_are_idempotent_marked_and_only_ours(
    helper: InProcessHelper, links: Links, instance: str
) -> None:
    await helper.ensure_bridge("br-t", address="10.9.0.1", prefix=24)
    for _ in range(2):
        await helper.create_tap("tap-pool-3", bridge="br-t", vm_id="")
    await helper.mark_tap("tap-pool-3", vm_id=VM)
    tap = next(link for link in await helper.list_links() if link.kind == "tap")
    assert (tap.name, tap.instance, tap.vm_id, tap.master) == ("tap-pool-3", instance, VM, "br-t")
    ip("tuntap", "add", "tap-fc-cdcdcdcd", "mode", "tap")
    with pytest.raises(BangerError, match="not this banger's"):
        await helper.create_tap("tap-fc-cdcdcdcd", bridge="br-t", vm_id=OTHER)
    with pytest.raises(BangerError, match="not this banger's"):
        await helper.mark_tap("tap-fc-cdcdcdcd", vm_id=OTHER)
    await helper.delete_tap("tap-fc-cdcdcdcd")
    namesake = next(link for link in await helper.list_links() if link.name == "tap-fc-cdcdcdcd")
    assert namesake.instance == ""
    await helper.delete_tap("tap-pool-3")
    await helper.delete_tap("tap-pool-3")
    with pytest.raises(BangerError, match="gone"):
        await helper.mark_tap("tap-pool-3", vm_id=VM)
    with pytest.raises(BangerError, match="bridge br-no is gone"):
        await helper.create_tap("tap-fc-abababab", bridge="br-no", vm_id=VM)


def test_the_leak_check_sees_a_link(netns: None, tmp_path: Path) -> None:
    before = leaks.snapshot(tmp_path, all_links=True)
    ip("tuntap", "add", "tap-fc-leak", "mode", "tap")
    (tmp_path / "state/vms/x").mkdir(parents=True)
    child = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
    descriptor = os.open("/dev/null", os.O_RDONLY)
    try:
        left = "\n".join(leaks.difference(before, leaks.snapshot(tmp_path, all_links=True)))
    finally:
        os.close(descriptor)
        child.kill()
        child.wait()
        (tmp_path / "state/vms/x").rmdir()
        ip("link", "delete", "tap-fc-leak")
    for word in ("link tap-fc-leak", "process", "sleep 60", "descriptor", "/dev/null", "state/vms/x"):
        assert word in left
