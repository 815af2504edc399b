"""What to do about a rule of another program's firewall that stops a guest: its own command. Pure.

Programs are known by the names that they give to tables and chains.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from banger.model.netwhy import TraceEvent

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def owner(drop: TraceEvent, chains: Sequence[str]) -> str:
    """docker, docker-nftables, firewalld, ufw, iptables or "" for the program whose rule it is.
    chains: of the dropping table, all that the packet came through."""
    if drop.table == "firewalld" or drop.table.startswith("firewalld"):
        return "firewalld"
    if drop.table.startswith("docker"):
        return "docker-nftables"
    if any(chain.startswith("ufw-") for chain in chains):
        return "ufw"
    if any(chain.startswith("DOCKER") for chain in chains):
        return "docker"
    if drop.table in ("filter", "nat", "mangle", "raw") and drop.family in ("ip", "ip6"):
        return "iptables"
    return ""


NAMES = {
    "docker": "Docker",
    "docker-nftables": "Docker",
    "firewalld": "firewalld",
    "ufw": "ufw",
    "iptables": "iptables",
}


def remedy(drop: TraceEvent, program: str, *, bridge: str, chains: Sequence[str] = ()) -> str:
    """For this host's root, one line. What is dropped on its way to the host itself has no outgoing link."""
    link = shlex.quote(bridge)
    inward = not drop.oif
    if program in ("docker", "iptables"):
        forward = drop.chain == "FORWARD" or drop.chain.startswith("DOCKER")
        chain = "DOCKER-USER" if forward and "DOCKER-USER" in chains else shlex.quote(drop.chain)
        tool = "iptables" if drop.table == "filter" else f"iptables -t {shlex.quote(drop.table)}"
        out = f"{tool} -I {chain} -i {link} -j ACCEPT"
        back = f"{tool} -I {chain} -o {link} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        return out if inward else f"{out}; {back}"
    if program == "docker-nftables":
        return 'set "ip-forward-no-drop": true in /etc/docker/daemon.json and restart Docker'
    if program == "firewalld":
        return f"firewall-cmd --permanent --zone=trusted --add-interface={link} && firewall-cmd --reload"
    if program == "ufw":
        way = "out" if drop.oif == bridge else "in"
        return f"ufw allow in on {link}" if inward else f"ufw route allow {way} on {link}"
    if drop.family == "bridge" or not all(_PLAIN.fullmatch(word) for word in (drop.table, drop.chain)):
        return f"let the program that made it accept what comes from {link}, and the answers"
    where = f"{drop.family} {drop.table} {drop.chain}"
    out = f"nft insert rule {where} iifname {link} accept"
    back = f"nft insert rule {where} oifname {link} ct state established,related accept"
    return out if inward else f"{out}; {back}"
