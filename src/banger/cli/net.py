"""`banger net …`: what becomes of a guest's packets."""

from __future__ import annotations

import click

from banger.cli.escape import safe
from banger.cli.lazy import LazyGroup
from banger.cli.options import BadValue, json_option, vm_argument
from banger.cli.render import colour, out, print_json
from banger.client.client import Client

net = LazyGroup(
    "net",
    help="Why a VM does not reach somebody.",
    lazy={"why": ("banger.cli.net:why", "Follow a VM's packets to a host, and say what stops them.")},
)

COLOURS = {"ok": "32", "stops here": "31", "not reached": "90", "not needed": "90"}
MOST_PORT = 65535


def target(text: str) -> tuple[str, int, str]:
    """(host, port or 0, protocol) of HOST[:PORT][/udp]. An address in [] or with several : stays whole."""
    place, slash, protocol = text.partition("/")
    if slash and protocol not in ("tcp", "udp"):
        raise BadValue(
            f"{text[:80]!a}: {protocol[:20]!a} is neither tcp nor udp", "HOST:PORT, or HOST:PORT/udp"
        )
    host, colon, port = place.rpartition(":")
    if not colon or ":" in host:
        host, colon, port = place, "", ""
    if not host or (colon and not port):
        raise BadValue(f"{text[:80]!a} names no host and port", "HOST[:PORT], as in example.org:443")
    if not port:
        if slash:
            raise BadValue(f"{text[:80]!a} names no port", "HOST:PORT/udp; without a port an echo is tried")
        return host, 0, "tcp"
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) <= MOST_PORT):
        raise BadValue(f"{port[:20]!a} is no port", f"a port is a number from 1 to {MOST_PORT}")
    return host, int(port), protocol or "tcp"


@click.command(
    "why",
    help="""Try to reach HOST from inside a VM, follow the packets through guest and host, and say what stops
    them and what to do.

    HOST is a name as the guest knows it (another VM's too), or an IPv4 address. With PORT a connection is
    tried (/udp: one datagram), without it an echo (ping). Some seconds; the host is changed for no longer
    than that. The exit status is 0 when it gets through, 1 when something stops it.

    \b
    banger net why web example.org:443       a TCP connection
    banger net why web 192.0.2.7             an echo
    banger net why web 172.16.0.1:53/udp     a datagram, which has to be answered
    banger net why web db.vm:5432            another VM
    """,
)
@vm_argument
@click.argument("host", metavar="HOST[:PORT][/udp]")
@json_option
def why(vm: str, host: str, as_json: bool) -> int:
    name, port, protocol = target(host)
    with Client() as client:
        said = client.net_why(vm, name, port=port, protocol=protocol)
    if as_json:
        print_json(said)
    else:
        stages = said["stages"]
        width = max((len(stage["name"]) for stage in stages), default=0)
        marks = max((len(stage["mark"]) for stage in stages), default=0)
        for stage in stages:
            mark = colour(stage["mark"].ljust(marks), COLOURS.get(stage["mark"], ""))
            out(f"{stage['name'].ljust(width)}  {mark}  {safe(stage.get('words', ''))}".rstrip())
        out("")
        out(safe(said["sentence"]))
        if remedy := said.get("remedy"):
            out(f"  {safe(remedy)}")
    return 0 if said["through"] else 1
