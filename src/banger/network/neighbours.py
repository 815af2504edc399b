"""Other firewall programs of this host: which are there, what they stop of guests, and what to do about it.

Pure over system/firewalls.py's facts. doctor and the warning at a VM's start say the same sentence because
both ask here. banger changes no table but its own, and nothing in its own can undo what another drops: so
these words are all there is to do.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address

from banger.network.netfilter import Packet, Stop, Table, read_tables, stops
from banger.system.firewalls import FirewallFacts
from banger.system.routes import PROBE

ANY_OUTSIDE = IPv4Address(PROBE)
"""An address that no rule has a reason to know."""
_DNS, _HTTPS, _CLIENT = 53, 443, 40000


class Program(StrEnum):
    """The values are what people call them."""

    DOCKER = "Docker"
    DOCKER_NFT = "Docker (nftables)"
    FIREWALLD = "firewalld"
    UFW = "ufw"
    IPTABLES = "iptables"
    OTHER = "another firewall"


class What(StrEnum):
    """What is stopped, in the words of the sentence."""

    OUT = "what guests with NAT send out"
    BACK = "the answers to guests with NAT"
    DNS = "guests' questions to the name server on the bridge"
    BETWEEN = "what guests send each other"


@dataclass(frozen=True, slots=True)
class Way:
    """The packets to ask about. uplink: the link of the default route, "" where there is none."""

    bridge: str
    bridge_ip: str
    guest_ip: str
    uplink: str
    nat: bool = True
    isolated: bool = True


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What one program stops. chains: "ip filter FORWARD"."""

    program: Program
    what: tuple[What, ...]
    chains: tuple[str, ...]
    remedy: str

    def sentence(self) -> str:
        return f"{self.program} drops {' and '.join(self.what)} ({', '.join(self.chains)})"

    def warning(self) -> str:
        """As a start says it: one line with the way out."""
        return f"{self.sentence()}; {self.remedy}"


def programs(facts: FirewallFacts) -> tuple[Program, ...]:
    """Which have rules here, whether or not they stop anything; nft tables of nobody known are none."""
    found = {
        owner(table) for table in read_tables(facts) if any(chain.rules for chain in table.chains.values())
    }
    return tuple(program for program in Program if program in found and program is not Program.OTHER)


def owner(table: Table) -> Program:
    return program_of(table.family, table.name, chains=table.chains)


def program_of(family: str, table: str, *, chains: Iterable[str]) -> Program:
    """By the names that programs give to their tables and chains. chains: the table's, as far as known."""
    if table.startswith("firewalld"):
        return Program.FIREWALLD
    if table.startswith("docker"):
        return Program.DOCKER_NFT
    known = tuple(chains)
    if any(name.startswith("ufw-") for name in known):
        return Program.UFW
    if any(name.startswith("DOCKER") for name in known):
        return Program.DOCKER
    if family in ("ip", "ip6") and table in ("filter", "nat", "mangle", "raw"):
        return Program.IPTABLES
    return Program.OTHER


def obstacles(facts: FirewallFacts, way: Way) -> tuple[Obstacle, ...]:
    """What stops guests, by program and table, in a fixed order."""
    tables = read_tables(facts)
    by_table: dict[int, list[tuple[What, Stop]]] = {}
    for what, packet in _packets(way, bridge_calls=facts.bridge_calls):
        for stop in stops(tables, packet):
            by_table.setdefault(id(stop.table), []).append((what, stop))
    found = [_obstacle(said, way) for said in by_table.values()]
    return tuple(sorted(found, key=lambda each: (list(Program).index(each.program), each.chains)))


def _packets(way: Way, *, bridge_calls: bool) -> list[tuple[What, Packet]]:
    guest, host = IPv4Address(way.guest_ip), IPv4Address(way.bridge_ip)
    ask = Packet("input", way.bridge, "", guest, host, "udp", _CLIENT, _DNS, way.bridge)
    found = [(What.DNS, ask)]
    if way.nat and way.uplink:
        out = Packet(
            "forward", way.bridge, way.uplink, guest, ANY_OUTSIDE, "tcp", _CLIENT, _HTTPS, way.bridge
        )
        back = Packet(
            "forward",
            way.uplink,
            way.bridge,
            ANY_OUTSIDE,
            guest,
            "tcp",
            _HTTPS,
            _CLIENT,
            way.bridge,
            answer=True,
        )
        found += [(What.OUT, out), (What.BACK, back)]
    if not way.isolated and bridge_calls:
        other = Packet("forward", way.bridge, way.bridge, guest, guest, "tcp", _CLIENT, _HTTPS, way.bridge)
        found.append((What.BETWEEN, other))
    return found


def _obstacle(said: Sequence[tuple[What, Stop]], way: Way) -> Obstacle:
    table = said[0][1].table
    program = owner(table)
    what = tuple(dict.fromkeys(each for each, _ in said))
    chains = tuple(dict.fromkeys(f"{table.family} {table.name} {stop.chain}" for _, stop in said))
    shown = tuple(f"{chain} of iptables-legacy" for chain in chains) if table.legacy else chains
    return Obstacle(program, what, shown, _remedy(program, table, said=said, way=way))


def _remedy(program: Program, table: Table, *, said: Sequence[tuple[What, Stop]], way: Way) -> str:
    """For this very situation: root's commands, one line."""
    bridge, stopped = shlex.quote(way.bridge), {what for what, _ in said}
    out, back = stopped & {What.OUT, What.BETWEEN}, What.BACK in stopped
    if program is Program.FIREWALLD:
        add = f"firewall-cmd --permanent --zone=trusted --add-interface={bridge}"
        return f"run: sudo {add} && sudo firewall-cmd --reload"
    if program is Program.DOCKER_NFT:
        return 'set "ip-forward-no-drop": true in /etc/docker/daemon.json; run: sudo systemctl restart docker'
    if program is Program.UFW:
        commands = [f"ufw route allow in on {bridge}"] if out else []
        commands += [f"ufw route allow out on {bridge}"] if back else []
        commands += [f"ufw allow in on {bridge} to {way.bridge_ip} port 53"] if What.DNS in stopped else []
        return _run(commands)
    if program in (Program.DOCKER, Program.IPTABLES):
        tool = "iptables-legacy" if table.legacy else "iptables"
        chain = "DOCKER-USER" if "DOCKER-USER" in table.chains else "FORWARD"
        commands = [f"{tool} -I {chain} -i {bridge} -j ACCEPT"] if out else []
        if back:
            answers = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
            commands.append(f"{tool} -I {chain} -o {bridge} {answers}")
        if What.DNS in stopped:
            where = f"-i {bridge} -d {way.bridge_ip}"
            commands += [f"{tool} -I INPUT {where} -p {p} --dport 53 -j ACCEPT" for p in ("udp", "tcp")]
        return _run(commands)
    return _run([_nft_rule(table, what, stop=stop, way=way) for what, stop in said])


def _nft_rule(table: Table, what: What, *, stop: Stop, way: Way) -> str:
    """In front of the rule (or of the policy) that drops."""
    words = {
        What.OUT: f"iifname {way.bridge} accept",
        What.BETWEEN: f"iifname {way.bridge} accept",
        What.BACK: f"oifname {way.bridge} ct state established,related accept",
        What.DNS: f"iifname {way.bridge} ip daddr {way.bridge_ip} th dport 53 accept",
    }
    where = " ".join(shlex.quote(word) for word in (table.family, table.name, stop.chain))
    return f"nft insert rule {where} {words[what]}"


def _run(commands: Sequence[str]) -> str:
    return "run: " + " && ".join(f"sudo {command}" for command in dict.fromkeys(commands))
