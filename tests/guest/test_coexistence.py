"""A real guest behind the forward policy of Docker: its start says so, and the command helps."""

from __future__ import annotations

import json
import re

import pytest

from tests.guest.instance import Instance
from tests.guest.test_nat import CURL, LOST, PAGE, WEB
from tests.guest.test_nat import banger as banger
from tests.host.firewalls import DOCKER

pytestmark = pytest.mark.guest


def test_docker_is_named_at_the_start_and_its_chain_lets_the_guest_out(banger: Instance) -> None:
    try:
        for line in DOCKER.strip().splitlines():
            banger.run_in_netns("iptables-nft", *line.split()).require()
        started = banger.ok("vm", "run", "--nat", "-d", "--name", "walled")
        said = re.search(r"Docker drops what guests with NAT send out.*?; run: (.*)", started.stderr)
        assert said, started.stderr
        checks = json.loads(banger.banger("doctor", "--json").text)
        (doctors,) = [check for check in checks if check["name"] == "firewall"]
        assert f"{doctors['message']}; {doctors['hint']}" in said[0]
        assert banger.banger("vm", "exec", "walled", "--", *LOST, WEB).status != 0
        command = said[1].replace("sudo iptables ", "iptables-nft ")
        banger.run_in_netns("sh", "-ec", command).require()
        assert banger.ok("vm", "exec", "walled", "--", *CURL, WEB).text == PAGE
        assert "drops" not in banger.ok("vm", "restart", "walled").stderr
        assert banger.ok("vm", "exec", "walled", "--", *CURL, WEB).text == PAGE
    finally:
        banger.run_in_netns("nft", "delete", "table", "ip", "filter").require()
