"""Other firewall programs, real ones where they can be run in a namespace, beside banger's guests.

ufw runs with a copy of its own configuration mounted over the host's. firewalld takes over the
host when it is installed: what it loads was saved from a real one (rulesets/). Docker is played
by the chains that it makes.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

RULESETS = Path(__file__).with_name("rulesets")
DOCKER = """
-P FORWARD DROP
-N DOCKER-USER
-N DOCKER-FORWARD
-N DOCKER-CT
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-USER -j RETURN
"""
DOCKER_NFT = """
table ip docker-bridges {
  map filter-forward-in-jumps { type ifname : verdict; elements = { "docker0" : jump in__docker0 } }
  map filter-forward-out-jumps { type ifname : verdict; elements = { "docker0" : jump out__docker0 } }
  chain filter-FORWARD {
    type filter hook forward priority filter; policy POLICY;
    oifname vmap @filter-forward-in-jumps
    iifname vmap @filter-forward-out-jumps
  }
  chain in__docker0 {
    ct state established,related counter accept
    counter drop comment "UNPUBLISHED PORT DROP"
  }
  chain out__docker0 {
    ct state established,related counter accept
    counter accept comment "OUTGOING"
  }
}
"""


def shell(line: str) -> str:
    """As a person types it who is root already."""
    done = subprocess.run(
        ["sh", "-ec", line.replace("sudo ", "")], check=True, timeout=60, capture_output=True, text=True
    )
    return done.stdout


def iptables(program: str, rules: str) -> None:
    for line in rules.strip().splitlines():
        shell(f"{program} {line}")


def load(ruleset: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=ruleset, text=True, check=True, timeout=60)


class Ufw:
    """ufw with a configuration of the test's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("ufw", "default"):
            shutil.copytree(f"/etc/{name}", folder / name)

    def run(self, line: str) -> str:
        mounts = "; ".join(f"mount --bind {self._folder / name} /etc/{name}" for name in ("ufw", "default"))
        inside = f"{mounts}; mount -t tmpfs run /run; {line.replace('sudo ', '')}"
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", inside],
            check=True,
            timeout=60,
            capture_output=True,
            text=True,
        )
        return done.stdout
