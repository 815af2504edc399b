"""The network's keys of config.toml, on real links: the bridge, its address and prefix, the pool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from banger.config.paths import Paths
from banger.config.toml import parse_settings
from banger.helper.inprocess import InProcessHelper
from banger.network.addresses import lowest_free
from banger.network.firewall import Firewall
from banger.network.host import HostNetwork
from banger.store.database import Database
from banger.store.settings import SettingTable
from tests.capabilities import require
from tests.host.streets import ip

pytestmark = [pytest.mark.host, pytest.mark.anyio, require("netns", "tun")]

TEXT = b'bridge_name = "br-odd"\nbridge_ip = "10.9.3.254"\ncidr = 22\ntap_pool_size = 3\n'


async def test_the_bridge_and_the_pool_are_as_configured(helper: InProcessHelper, paths: Paths) -> None:
    settings = parse_settings(TEXT, "config.toml")
    guest = lowest_free(settings.bridge_ip, settings.cidr, used=())
    assert guest == "10.9.0.1"
    database = await Database.open(paths.database)
    firewall = Firewall(helper, settings, records=list, before=SettingTable(database))
    network = HostNetwork(helper, settings, firewall=firewall)
    try:
        await network.prepare(guest)
        await network._pool.settled()
        (bridge,) = json.loads(ip("-json", "address", "show", "dev", "br-odd"))
        shown = [
            (each["local"], each["prefixlen"]) for each in bridge["addr_info"] if each["family"] == "inet"
        ]
        assert shown == [("10.9.3.254", 22)]
        taps = [link for link in await helper.list_links() if link.kind == "tap"]
        assert [link.master for link in taps] == ["br-odd"] * 3
    finally:
        await network.shutdown()
        await network.close()
        await database.close()
    assert not Path("/sys/class/net/br-odd").exists()
