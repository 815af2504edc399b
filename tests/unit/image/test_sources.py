"""The mirror and the proxy of the host's own apt."""

from __future__ import annotations

from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.image import sources

OS_RELEASE = 'ID=debian\nVERSION_CODENAME=bookworm\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'


def host(root: Path, files: dict[str, str], os_release: str = OS_RELEASE) -> Path:
    for name, text in {"etc/os-release": os_release, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def stanza(types: str, uris: str, suites: str, extra: str = "") -> str:
    return f"{extra}Types: {types}\nURIs: {uris}\nSuites: {suites}\nComponents: main\n\n"


def test_deb822_sources(tmp_path: Path) -> None:
    debian = (
        stanza("deb-src", "http://src.example.org/debian", "bookworm")
        + stanza("deb", "http://off.example.org/debian", "bookworm", "Enabled: no\n")
        + stanza("deb deb-src", "cdrom:[x]/ http://mirror.example.org/debian/", "bookworm bookworm-updates")
        + stanza("deb", "http://mirror.example.org/debian-security", "bookworm-security")
    )
    root = host(
        tmp_path,
        {
            "etc/apt/sources.list.d/a.sources": stanza("deb", "https://tools.example.org/x", "nodistro"),
            "etc/apt/sources.list.d/debian.sources": debian,
        },
    )
    assert sources.find_mirror("", root=root) == "http://mirror.example.org/debian"


def test_one_line_sources(tmp_path: Path) -> None:
    root = host(
        tmp_path,
        {
            "etc/apt/sources.list": (
                "# deb http://no.example.org/debian bookworm main\n"
                "deb [arch=amd64 signed-by=/x.gpg] https://other.example.org/apt sdk-bookworm main\n"
                "deb http://mirror.example.org/debian-security bookworm-security main\n"
                "deb [ arch=amd64 ] http://mirror.example.org/debian bookworm contrib main # comment\n"
            )
        },
    )
    assert sources.find_mirror("", root=root) == "http://mirror.example.org/debian"


def test_configured_mirror_wins(tmp_path: Path) -> None:
    assert (
        sources.find_mirror("https://mine.example.org/debian/", root=tmp_path)
        == "https://mine.example.org/debian"
    )


@pytest.mark.parametrize(
    "url", ["ftp://mirror.example.org/x", "mirror.example.org", "http:///x", "http://h/x?y"]
)
def test_bad_mirrors(url: str, tmp_path: Path) -> None:
    with pytest.raises(BangerError, match="not the base URL"):
        sources.find_mirror(url, root=tmp_path)


def test_other_distributions_need_a_setting(tmp_path: Path) -> None:
    root = host(tmp_path, {}, os_release='ID=fedora\nPRETTY_NAME="Fedora Linux 43"\n')
    with pytest.raises(BangerError, match="Fedora Linux 43 is not Debian") as caught:
        sources.find_mirror("", root=root)
    assert caught.value.code is ErrorCode.HOST_UNSUITABLE
    assert "debian_mirror" in (caught.value.hint or "")


def test_debian_without_a_network_mirror(tmp_path: Path) -> None:
    root = host(tmp_path, {"etc/apt/sources.list": "deb cdrom:[Debian]/ bookworm main\n"})
    with pytest.raises(BangerError, match="no http or https mirror") as caught:
        sources.find_mirror("", root=root)
    assert caught.value.hint


def test_broken_files_are_passed_over(tmp_path: Path) -> None:
    root = host(
        tmp_path,
        {
            "etc/apt/sources.list.d/a.sources": " broken\n",
            "etc/apt/sources.list.d/b.list": "deb\ndeb [\n\0\n",
            "etc/apt/sources.list.d/c.list": "deb http://mirror.example.org/debian bookworm main\n",
        },
    )
    assert sources.find_mirror("", root=root) == "http://mirror.example.org/debian"


def test_apt_proxies() -> None:
    found = sources.parse_apt_proxies(
        'APT "";\nAcquire::http::Proxy "http://proxy.example.org:3142";\n'
        'Acquire::http::Proxy::Mirror.example.org "DIRECT";\nAcquire::http::Pipeline-Depth "5";\n'
    )
    assert found.for_url("http://a.example.org/x") == "http://proxy.example.org:3142"
    assert found.for_url("https://a.example.org/x") == "http://proxy.example.org:3142"
    assert found.for_url("http://mirror.example.org/x") == ""
    assert sources.NO_PROXIES.for_url("http://a.example.org") is None


@pytest.mark.parametrize(
    "url", ["http://[x/debian", "http://example.org:99999/debian", "http://a:b/", "ftp://a/", "http://"]
)
def test_what_is_no_mirror(tmp_path: Path, url: str) -> None:
    root = host(tmp_path, {"etc/apt/sources.list": f"deb {url} bookworm main\n"})
    for configured in (url, ""):
        with pytest.raises(BangerError) as caught:
            sources.find_mirror(configured, root=root)
        assert caught.value.code is ErrorCode.HOST_UNSUITABLE
