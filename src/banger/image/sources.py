"""Where Debian's archive is: the mirror and the proxy that the host's own apt uses, or the configured one.

Reads /etc/os-release and /etc/apt, asks `apt-config` for apt's proxy, writes nothing. Both of apt's
formats are read: deb822 `.sources` and one-line `.list`. The suites that banger takes besides the
host's own (backports, a newer release) are on the same mirror.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from banger.errors import BangerError
from banger.image import deb822
from banger.image.errors import unsuitable
from banger.system.run import run

_MAX_FILE = 1 << 20
_HINT = "set debian_mirror in banger's config.toml to the base URL of a Debian mirror"


@dataclass(frozen=True, slots=True)
class Proxies:
    """apt's own proxy settings: by scheme, and by host ("DIRECT": none). Empty: the environment's."""

    by_scheme: dict[str, str]
    by_host: dict[tuple[str, str], str]

    def for_url(self, url: str) -> str | None:
        """The proxy's URL; "" for explicitly none; None where apt says nothing."""
        parts = urlsplit(url)
        found = self.by_host.get((parts.scheme, parts.hostname or ""), self.by_scheme.get(parts.scheme))
        if found is None:
            return None
        return "" if found.upper() == "DIRECT" else found


NO_PROXIES = Proxies({}, {})


def parse_os_release(text: str) -> dict[str, str]:
    """KEY=value lines, with shell quoting; lines that are none are skipped."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if not equals or key.startswith("#"):
            continue
        try:
            found[key] = "".join(shlex.split(value))
        except ValueError:
            continue
    return found


def parse_deb822_sources(text: str) -> Iterable[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """(URI, suites, components) of each enabled `deb` stanza. A broken file gives nothing."""
    try:
        stanzas = list(deb822.parse_paragraphs(text))
    except BangerError:
        return
    for stanza in stanzas:
        if "deb" not in stanza.get("types", "").split():
            continue
        if stanza.get("enabled", "yes").lower() in ("no", "false", "0", "off", "without", "disable"):
            continue
        suites = tuple(stanza.get("suites", "").split())
        components = tuple(stanza.get("components", "").split())
        for uri in stanza.get("uris", "").split():
            yield uri, suites, components


def parse_list_sources(text: str) -> Iterable[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """The same of one-line entries: `deb [options] URI suite components…`."""
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words or words[0] != "deb":
            continue
        words = words[1:]
        if words and words[0].startswith("["):
            while words and not words[0].endswith("]"):
                words.pop(0)
            words = words[1:]
        if len(words) >= 2:
            yield words[0], (words[1],), tuple(words[2:])


def read_sources(etc_apt: Path) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """All entries of a host's apt, in apt's order of files. Blocking; files over 1 MiB are skipped."""
    found: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
    parts = sorted((etc_apt / "sources.list.d").glob("*")) if (etc_apt / "sources.list.d").is_dir() else []
    for file in [etc_apt / "sources.list", *parts]:
        try:
            if not file.is_file() or file.stat().st_size > _MAX_FILE:
                continue
            text = file.read_text("utf-8", "replace")
        except OSError:
            continue
        if file.suffix == ".sources":
            found += parse_deb822_sources(text)
        elif file.suffix == ".list":
            found += parse_list_sources(text)
    return found


def normalise_mirror(url: str) -> str:
    """A usable base URL without its trailing slash, or HOST_UNSUITABLE."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        usable = usable and not (parts.query or parts.fragment)
    except ValueError:  # brackets or a port that are none
        usable = False
    if not usable:
        raise unsuitable(f"not the base URL of a Debian mirror: {url!r}", hint=_HINT)
    return url.rstrip("/")


def find_mirror(configured: str, *, root: Path = Path("/")) -> str:
    """The base URL of Debian's archive: configured, else the one that the host's apt has. Blocking."""
    if configured:
        return normalise_mirror(configured)
    try:
        release = parse_os_release((root / "etc/os-release").read_text("utf-8", "replace"))
    except OSError:
        release = {}
    if release.get("ID") != "debian":
        name = release.get("PRETTY_NAME") or release.get("ID") or "this host"
        raise unsuitable(f"{name} is not Debian: no Debian mirror is known here", hint=_HINT)
    codename = release.get("VERSION_CODENAME", "")
    aliases = {codename, "stable", "testing", "unstable", "sid"} - {""}
    entries = read_sources(root / "etc/apt")
    # the host's own release first; testing and sid have their codename or an alias
    for wanted in ({codename}, aliases):
        for uri, suites, components in entries:
            if not wanted & set(suites) or (components and "main" not in components):
                continue
            if uri.lower().startswith(("http://", "https://")):
                return normalise_mirror(uri)
    raise unsuitable("the host's apt has no http or https mirror of Debian", hint=_HINT)


def parse_apt_proxies(dump: str) -> Proxies:
    """From the output of `apt-config dump`: `Acquire::http::Proxy "…";` and `…::Proxy::HOST "…";`."""
    by_scheme: dict[str, str] = {}
    by_host: dict[tuple[str, str], str] = {}
    for line in dump.splitlines():
        key, _, rest = line.partition(" ")
        parts = key.split("::")
        value = rest.strip().rstrip(";").strip('"')
        if len(parts) < 3 or parts[0].lower() != "acquire" or parts[2].lower() != "proxy" or not value:
            continue
        scheme = parts[1].lower()
        if scheme not in ("http", "https"):
            continue
        if len(parts) == 3:
            by_scheme[scheme] = value
        elif len(parts) == 4:
            by_host[scheme, parts[3].lower()] = value
    if "http" in by_scheme:  # apt takes the http proxy for https where that has none
        by_scheme.setdefault("https", by_scheme["http"])
    return Proxies(by_scheme, by_host)


async def apt_proxies() -> Proxies:
    """apt's proxy settings; none where there is no apt-config."""
    try:
        done = await run(["apt-config", "dump"], timeout_s=10)
    except BangerError:
        return NO_PROXIES
    return parse_apt_proxies(done.stdout.decode("utf-8", "replace"))
