"""docs/names.md and docs/net-why.md, typed as they stand there, at guests called web and db.

The host's resolver is a dnsmasq with the recipe of names.md; a second namespace is the internet, with
example.org in it. Docker's chains are made as Docker makes them. Of the page's other
recipes tests/host/test_dns.py tries the one for a plain resolv.conf.
"""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import pytest

from tests import realdnsmasq
from tests.capabilities import require
from tests.docpages import PROJECT
from tests.guest.instance import SMALL, Instance, checked_instance, until
from tests.guest.pagetyping import Page, do, type_page
from tests.guest.test_nat import listens, serve
from tests.guest.typist import Typist, typist

pytestmark = [pytest.mark.guest, require("dig", "dnsmasq", "iptables")]

ADDRESS, ROUTER, HOST = "192.0.2.7", "198.51.100.1", "198.51.100.2"
WHY = "banger net why web example.org:443"
NET_WHY = (PROJECT / "docs/net-why.md").read_text(encoding="utf-8")

WEB = r'''read line; printf "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n"'''
START = f"banger vm session start web -- systemd-socket-activate -a -l 8080 --inetd sh -c '{WEB}'"
UNTIL = "banger vm exec web -- sh -c 'until ss -Hltn sport = :8080 | grep -q .; do sleep 0.2; done'"
NAMES = Page(
    before={"curl http://web.vm:8080/": (START, UNTIL)},
    shows={
        "dig @127.0.0.1 -p 42069 web.vm": r"^web\.vm\.\s.*\sA\s+172\.16\.0\.2$",
        "curl http://web.vm:8080/": "^hi$",
        "banger vm exec web -- getent hosts db": r"^172\.16\.0\.3\s+db\.vm\b",
    },
)


def resolver(made: Instance) -> AbstractContextManager[None]:
    """The host's own, while it lasts: it knows example.org, and whom to ask for guests."""
    lines = [*realdnsmasq.recipe(), f"address=/example.org/{ADDRESS}"]
    return realdnsmasq.dnsmasq(made.home / "dnsmasq.conf", lines, "--interface=lo", run_in=made.argv())


@contextmanager
def internet(made: Instance) -> Iterator[str]:
    """Its namespace: behind this host's eth0, with example.org, which serves port 443."""
    name = f"banger-test-{secrets.token_hex(4)}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, timeout=30)

    ip("netns", "add", name)
    made.own_links.add("eth0")
    try:
        ip("-n", made.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1", "netns", name)
        ip("-n", name, "link", "set", "lo", "up")
        for netns, link, address in ((name, "eth1", f"{ROUTER}/24"), (made.netns, "eth0", f"{HOST}/24")):
            ip("-n", netns, "address", "add", address, "dev", link)
            ip("-n", netns, "link", "set", link, "up")
        ip("-n", name, "address", "add", f"{ADDRESS}/32", "dev", "lo")
        ip("-n", made.netns, "route", "add", "default", "via", ROUTER)
        with serve(name, 443, made.home) as server:
            try:
                until(lambda: listens(name, 443), timeout_s=30)
                yield name
            finally:
                server.kill()
    finally:
        with suppress(subprocess.CalledProcessError):
            ip("-n", made.netns, "link", "delete", "eth0")
        made.own_links.discard("eth0")
        ip("netns", "delete", name)


@pytest.fixture(scope="module")
def banger() -> Iterator[Instance]:
    with checked_instance(SMALL, resolver="127.0.0.1") as made:
        yield made


@pytest.fixture(scope="module")
def street(banger: Instance) -> Iterator[str]:
    with internet(banger) as name:
        yield name


@pytest.fixture(scope="module")
def person(banger: Instance, street: str) -> Iterator[Typist]:
    """Where iptables is iptables-nft, as on current distributions."""
    with typist(banger) as at_a_prompt:
        for line in (
            "banger vm run --quiet -d --name web --nat --init agent",
            "banger vm run --quiet -d --name db --init agent",
            'sudo() { "$@"; }; iptables() { iptables-nft "$@"; }',
            f"INTERNET='ip -n {street}'",
        ):
            do(at_a_prompt, line, "at the beginning")
        yield at_a_prompt


def test_names(banger: Instance, person: Typist) -> None:
    with resolver(banger):
        type_page(person, "docs/names.md", NAMES)


DOCKER = (
    "iptables -N DOCKER-USER && iptables -A DOCKER-USER -j RETURN",
    "iptables -A FORWARD -j DOCKER-USER && iptables -P FORWARD DROP",
)
NO_DOCKER = "nft delete table ip filter"
OTHER = "nft 'table inet other { chain way { type filter hook forward priority 5; policy drop; }; }'"
ROUTE = f"ip route add default via {ROUTER}"
STRANGER = "banger vm exec web -- sh -c 'echo nameserver 198.51.100.77 > /etc/resolv.conf'"


def test_its_example(banger: Instance, person: Typist) -> None:
    """What net-why.md shows, and that what is advised there helps."""
    block = NET_WHY.partition(f"$ {WHY}\n")[2].partition("\n\nThe exit status")[0]
    for line in DOCKER:
        do(person, line, "as Docker does")
    with resolver(banger):
        shown = "\n".join(person.type(WHY))
        assert person.status == 1
        assert same(shown) == same(block), shown
        do(person, f"eval \"$({WHY} | sed -n 's/^  run: //p')\"", "what it advises")
        assert re.search(r"^nothing stops web: .* by eth0 .* ms", do(person, WHY, "what it advises"), re.M)
    do(person, NO_DOCKER, "as Docker does not")


def same(shown: str) -> str:
    """Without what is of this instance, and where lines end. A tap is the pool's if one was ready by then."""
    return re.sub(r"(?<=banger_)[0-9a-f]{16}|(?<=\btap-)(pool-\d+|fc-[0-9a-f]+)|\s", "", shown)


@dataclass(frozen=True)
class Fault:
    """made, mended: how, typed; without mended the page's own command is."""

    cause: str
    made: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()
    asked: str = WHY
    resolver: bool = True


FAULTS = (
    Fault("no_nat", ("banger vm set web --no-nat",), asked=f"banger net why web {ADDRESS}:443"),
    Fault("firewall", (OTHER,), ("nft delete table inet other",)),
    Fault("firewall", DOCKER, (NO_DOCKER,)),
    Fault("no_route", (f"ip route delete default via {ROUTER}",), (ROUTE,)),
    Fault("guest_route", ("banger vm exec web -- ip route delete default",)),
    Fault("no_dns_answer", resolver=False),
    Fault("wrong_resolver", (STRANGER,)),
    Fault("not_listening", asked="banger net why web example.org:81"),
    Fault("uplink_down", ("$INTERNET link set eth1 down",), ("$INTERNET link set eth1 up",)),
)
"""The rows of the page's table, from the top."""


def test_its_table(banger: Instance, person: Typist) -> None:
    """Each fault is made, named as the page names it, and gone when the page's command has been typed."""
    rows = [row.strip("| ").split(" | ") for row in NET_WHY.splitlines() if row.startswith("| `")]
    assert [row[0] for row in rows] == [f"`{fault.cause}`" for fault in FAULTS]
    for fault, (_cause, example, remedy) in zip(FAULTS, rows, strict=True):
        for line in fault.made:
            do(person, line, fault.cause)
        with resolver(banger) if fault.resolver else nullcontext():
            shown = "\n".join(person.type(fault.asked))
        assert person.status == 1, shown
        assert same(example.strip("`")) in same(shown), shown
        for part in remedy.replace("`", "").partition("; where ")[0].split("…"):
            assert same(part) in same(shown), shown
        for line in fault.mended or ((remedy.strip("`"),) if fault.made else ()):
            do(person, line, fault.cause)
    with resolver(banger):
        do(person, WHY, "when all is mended")
