"""`vm publish`, `unpublish` and `-p`: what is read, printed and refused before the daemon is asked."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.conftest import Instance


def lines(output: bytes) -> list[str]:
    return output.decode().splitlines()


def test_published_ports_are_shown_and_taken_back(banger: Instance) -> None:
    banger("vm", "create", "--name", "plain")
    assert "PORTS" not in lines(banger("vm", "list").stdout)[0]
    banger("vm", "create", "--name", "web", "-p", "8080:8080", "--publish", "[::1]:8443:443/tcp", "-p", "22")
    shown = json.loads(banger("vm", "show", "web", "--json").stdout)
    wanted = [("127.0.0.1", 8080, 8080), ("::1", 8443, 443), ("127.0.0.1", 20000, 22)]
    assert [tuple(port.values()) for port in shown["spec"]["published"]] == wanted
    assert [port["listening"] for port in shown["runtime"]["published"]] == [True] * 3
    assert b"published       [::1]:8443 -> 443\n" in banger("vm", "show", "web").stdout

    table = lines(banger("vm", "list").stdout)
    assert table[0].split()[-2:] == ["CREATED", "PORTS"]
    rows = {line.split()[1]: line for line in table[1:]}
    assert rows["web"].endswith("8080->8080, [::1]:8443->443, 20000->22")
    assert rows["plain"].endswith("  -")

    ports = banger("vm", "ports", "web")
    (web,) = [line for line in lines(ports.stdout) if " 8080 " in line]
    assert "127.0.0.1:8080" in web.split()
    assert len(json.loads(banger("vm", "ports", "web", "--json").stdout)["published"]) == 3

    assert lines(banger("vm", "publish", "web", "0.0.0.0:80:80").stdout)[-1] == "0.0.0.0:80:80"
    assert lines(banger("vm", "list").stdout)[-1].endswith("20000->22 +1")
    left = lines(banger("vm", "unpublish", "web", "8080", "[::1]:8443:443").stdout)
    assert left == ["127.0.0.1:20000:22", "0.0.0.0:80:80"]
    missing = banger("vm", "unpublish", "web", "0.0.0.0:20000", status=1).stderr
    assert missing.startswith(b"banger: web does not publish port 20000 of '0.0.0.0'\n")
    assert json.loads(banger("vm", "unpublish", "web", "--all", "--json").stdout)["spec"]["published"] == []
    assert banger("vm", "publish", "plain", "80", "--json").returncode == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("vm", "run", "-p", "8080:80/udp"), b"only TCP ports can be published, not udp"),
        (("vm", "create", "-p", "x:80"), b"its port 'x' is not a number"),
        (("vm", "create", "-p", "8000-8010:80-90"), b"give --publish once for each port"),
        (("vm", "publish", "none", "::1:80:80"), b"an IPv6 address stands in brackets"),
        (("vm", "publish", "none"), b"Missing argument"),
        (("vm", "unpublish", "none"), b"give the ports, or --all"),
        (("vm", "unpublish", "none", "80", "--all"), b"give the ports, or --all"),
    ],
)
def test_wrong_usage_is_2_and_asks_no_daemon(banger: Instance, argv: tuple[str, ...], said: bytes) -> None:
    done = banger(*argv, status=2)
    assert said in done.stderr, done.stderr
    assert done.stdout == b""


def test_run_says_where_ports_lead(banger: Instance) -> None:
    done = banger("vm", "run", "-d", "--name", "leads", "-p", "80")
    assert b"127.0.0.1:20000 leads to its port 80\n" in done.stderr
