"""Where a registry may be reached, and where it may send one."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from banger.config.settings import Registry
from banger.errors import BangerError, ErrorCode
from banger.image.errors import ImageError
from banger.image.oci.auth import Credential
from banger.image.oci.endpoint import Access, check_hop, endpoints, mirrors, origin, proxy_for, tls
from banger.image.oci.reference import DEFAULT_REGISTRY, parse_reference

HOME = "registry.example.org:5000"
ACCESS = Access(
    registries=(
        Registry(host=HOME, insecure=True),
        Registry(host="mirrored.example.org", mirror="http://cache.example.org:8080/hub/"),
        Registry(host=DEFAULT_REGISTRY, mirror="mirror.example.org"),
    ),
    credentials={"mirror.example.org": Credential(username="m"), DEFAULT_REGISTRY: Credential(username="d")},
)


def bases(name: str) -> list[tuple[str, ...]]:
    return [endpoint.bases for endpoint in endpoints(parse_reference(name), ACCESS)]


def test_schemes() -> None:
    assert bases("example.org/app") == [("https://example.org",)]
    assert bases("localhost:5000/app") == [("https://localhost:5000", "http://localhost:5000")]
    assert bases(f"{HOME}/app") == [(f"https://{HOME}", f"http://{HOME}")]
    assert bases("registry.example.org/app") == [("https://registry.example.org",)], (
        "another port, another registry"
    )


def test_mirrors_come_first_with_accounts_of_their_own() -> None:
    assert bases("mirrored.example.org/app") == [
        ("http://cache.example.org:8080/hub",),
        ("https://mirrored.example.org",),
    ]
    found = endpoints(parse_reference("alpine"), ACCESS)
    assert [endpoint.credential.username for endpoint in found] == ["m", "d"]
    assert found[0].bases == ("https://mirror.example.org",)
    assert mirrors(parse_reference("alpine"), ACCESS.registries) == ["mirror.example.org"]
    assert mirrors(parse_reference("example.org/app"), ACCESS.registries) == []


ALLOWED = [
    ("https://example.org/v2/", "https://storage.example.net/x?sig=%2F"),
    ("https://example.org/v2/", "https://example.org/elsewhere"),
    ("http://127.0.0.1:5000/v2/", "http://127.0.0.1:9000/x"),
    ("http://127.0.0.1:5000/v2/", "https://storage.example.net/x"),
    ("https://localhost:5000/v2/", "http://localhost:5001/token"),
    (f"http://{HOME}/v2/", f"http://{HOME}/token"),
    (f"https://{HOME}/v2/", f"http://{HOME}/token"),
    ("http://cache.example.org:8080/v2/", "http://cache.example.org:8080/x"),
]
REFUSED = [
    ("https://example.org/v2/", "http://example.org/x", "without encryption"),
    ("https://example.org/v2/", f"http://{HOME}/x", "without encryption"),
    ("http://127.0.0.1:5000/v2/", "http://example.org/x", "without encryption"),
    (f"http://{HOME}/v2/", "http://storage.example.net/x", "without encryption"),
    ("https://example.org/v2/", "https://127.0.0.1/x", "this machine"),
    ("https://example.org/v2/", "https://127.1/x", "this machine"),
    ("https://example.org/v2/", "https://0x7f000001/x", "this machine"),
    ("https://example.org/v2/", "https://localhost:8443/x", "this machine"),
    ("https://example.org/v2/", "https://[::1]/x", "this machine"),
    ("https://example.org/v2/", "https://[::ffff:127.0.0.1]/x", "this machine"),
    (f"http://{HOME}/v2/", "http://127.0.0.1/x", "this machine"),
    ("https://example.org/v2/", "file:///etc/passwd", "no http URL"),
    ("https://example.org/v2/", "https:///x", "no http URL"),
    ("https://example.org/v2/", "https://host:99999/x", "no http URL"),
    ("https://example.org/v2/", "", "no http URL"),
    ("https://example.org/v2/", "https://a:b@example.net/x", "strange URL"),
    ("https://example.org/v2/", "https://example.net/a\r\nHost: x", "strange URL"),
    ("https://example.org/v2/", "https://example.net/" + "a" * 9000, "strange URL"),
]


@pytest.mark.parametrize(("source", "target"), ALLOWED)
def test_hops_that_are_followed(source: str, target: str) -> None:
    check_hop(source, target, ACCESS)


@pytest.mark.parametrize(("source", "target", "why"), REFUSED)
def test_hops_that_are_not(source: str, target: str, why: str) -> None:
    with pytest.raises(BangerError, match=why) as caught:
        check_hop(source, target, ACCESS)
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
    assert caught.value.brief.isprintable()
    assert "passwd" not in caught.value.brief


@example("127.")
@example("127.1")
@given(st.text(alphabet="htps:/[].@?#%\\ \tlocalhost127.0.0.1exampl\n-", max_size=60))
def test_any_target_is_safe_or_refused(rest: str) -> None:
    for target in (rest, f"https://{rest}", f"http://{rest}"):
        try:
            check_hop("https://example.org/v2/", target, ACCESS)
        except ImageError:
            continue
        scheme, host, port = origin(target)
        assert scheme == "https"
        assert host
        assert 0 < port < 65536
        assert host != "localhost"
        with contextlib.suppress(OSError, UnicodeError):  # whatever libc takes for an address; else a name
            (found,) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            assert not ipaddress.ip_address(found[4][0]).is_loopback


def test_certificates(tmp_path: Path) -> None:
    access = Access(certificate_dirs=(tmp_path,))
    assert tls("example.org", access, insecure=False).verify_mode is ssl.CERT_REQUIRED
    assert tls("example.org", access, insecure=True).verify_mode is ssl.CERT_NONE
    (tmp_path / "example.org").mkdir()
    (tmp_path / "example.org" / "ca.crt").write_text("none")
    with pytest.raises(BangerError, match="cannot be used"):
        tls("example.org", access, insecure=False)
    assert tls("../example.org", access, insecure=False)


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert proxy_for("https://example.org/") is None
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", "inside.example.org")
    assert proxy_for("https://example.org/") == "http://proxy.example.org:3128"
    assert proxy_for("https://inside.example.org/") is None
    assert proxy_for("https://127.0.0.1:5000/") is None
    assert proxy_for("http://example.org/") is None
    monkeypatch.setenv("https_proxy", "socks5://proxy.example.org")
    with pytest.raises(BangerError, match="no http proxy"):
        proxy_for("https://example.org/")
